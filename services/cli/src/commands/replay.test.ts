import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceKnowledge, RouterWindow, TelemetryFrame } from '@moefleet/proto';
import { runCaptured } from '../testing/run-captured';
import { device, ScriptedOperator } from '../testing/scripted-operator';

const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');

let folder: string;
let windows: string;
let routes: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-replay-'));
  [windows, routes] = [join(folder, 'run.windows'), join(folder, 'run.route.csv')];
  const { code, stderr } = await runCaptured(['engine', 'eval', '--model', join(FIXTURES, 'tinymoe-17m-q8_0.gguf'), '--text', join(FIXTURES, 'wikitext.txt'), '--tokens', '256', '--threads', '1',
    '--capacity', '12', '--record-windows', windows, '--record-routes', routes, '--json']);
  if (code !== 0) throw new Error(stderr);
});
afterAll(() => rmSync(folder, { recursive: true }));

const replay = (...flags: string[]) => runCaptured(['replay', ...flags]);

test('prints a table, or rows as JSON, of every combination', async () => {
  const grid = ['--trace', windows, '--lambda', '0,0.2', '--capacity', '8:16:4', '--policy', 'lru,belady', '--compute-ms', '10', '--miss-ms', '2'];
  const { stdout } = await replay(...grid);
  expect(stdout).toMatch(/run.windows: 1536 events in 6 layers, 4 of 32 experts each, quantised scores/);
  expect(stdout).toMatch(/cache_prior λ 0.2 topJ 2 +lru +12 +[\d.]+% +\d\.\d\d +[\d.]+%/);
  const { rows, ...head } = JSON.parse((await replay(...grid, '--json')).stdout) as { rows: { lambda: number; policy: string; capacity: number; missRate: number; tokensPerSecond: number; missRateBand: { low: number } }[] };
  expect(head).toEqual({ trace: windows, kind: 'quantised scores', experts: 32, topK: 4, layers: [0, 1, 2, 3, 4, 5], events: 1536, phase: null, recordedUnderPull: false, skipped: [] });
  expect(rows.map(({ lambda, policy, capacity }) => [lambda, policy, capacity])).toEqual([
    ...['lru', 'belady'].flatMap((policy) => [8, 12, 16].map((capacity) => [0, policy, capacity])), ...[8, 12, 16].map((capacity) => [0.2, 'lru', capacity]),
  ]);
  const of = (lambda: number) => rows.find((row) => row.lambda === lambda && row.capacity === 12)!;
  expect(of(0.2).missRate).toBeLessThan(of(0).missRate);
  expect(of(0.2).tokensPerSecond).toBeGreaterThan(of(0).tokensPerSecond);
});

test('predicts a device\'s tokens/s as the learner has found it, else from its counters', async () => {
  const operator = new ScriptedOperator();
  await operator.start();
  try {
    const file = readFileSync(windows);
    operator.script.windows = [RouterWindow.decode(file.subarray(12, 12 + file.readUInt32LE(8)))];
    const model = { ...device('a').info!.model!, expertBytes: [2n << 20n, 2n << 20n] };
    const telemetry = TelemetryFrame.fromPartial({ decodeTokens: 100n, decodeNs: 3_000_000_000n, stallNs: 1_000_000_000n, decodeSlots: { hits: 300n, misses: 100n }, layers: [{}] });
    operator.script.devices = [device('a', { info: { ...device('a').info!, model }, telemetry })];
    const rows = async () => (JSON.parse((await runCaptured(['replay', '--device', 'a', '--capacity', '16', '--json'], { MOEFLEET_OPERATOR: operator.address })).stdout) as { rows: { missRate: number; tokensPerSecond: number }[] }).rows[0]!;
    const predicted = (row: { missRate: number }, computeMs: number, missMs: number) => 1000 / (computeMs + row.missRate * 24 * missMs);
    const counted = await rows();
    expect(counted.tokensPerSecond).toBeCloseTo(predicted(counted, 20, 10), 6);
    const knowledge = (windowsSeen: bigint) => DeviceKnowledge.fromPartial({ deviceId: 'a', modelHash: model.hash, speed: { windows: windowsSeen, mean: { compute: 5, reading: 3 } } });
    operator.script.explained = { device: operator.script.devices[0], proposal: undefined, knowledge: knowledge(2n), surfaces: [] };
    expect(await rows()).toEqual(counted);
    operator.script.explained = { ...operator.script.explained, knowledge: knowledge(3n) };
    expect((await rows()).tokensPerSecond).toBeCloseTo(predicted(counted, 5, 6), 6);
  } finally {
    operator.stop();
  }
});

test('draws what it would print', async () => {
  const svg = join(folder, 'curve.svg');
  const { code, stdout, stderr } = await replay('--trace', routes, '--capacity', '6:32', '--policy', 'lru,adaptive', '--svg', svg);
  expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: '', stderr: expect.stringContaining('54 points') });
  expect(readFileSync(svg, 'utf8')).toMatch(/^<svg.*capacity, experts per layer.*<\/svg>\s*$/s);
});

test.each([
  ['a pull on a route file', ['--lambda', '0.1', '--capacity', '8'], /--lambda: 0.1 needs the router's scores/],
  ['a capacity below a token', ['--capacity', '3'], /--capacity: 3 is below the 4 experts/],
  ['a range that goes down', ['--capacity', '16:8'], /ranges from:to:step that go up/],
  ['an endless range', ['--capacity', '1:60000:0'], /ranges from:to:step that go up/],
  ['a cost by half', ['--capacity', '8', '--miss-ms', '3'], /--compute-ms: needed/],
  ['belady under nothing but a pull', ['--capacity', '8', '--policy', 'fifo'], /--policy.*'fifo'/],
])('refuses %s', async (_, flags, line) => {
  const { code, stdout, stderr } = await replay('--trace', routes, ...flags, '--json');
  expect(stderr).toMatch(line);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('refuses a file that is none', async () => {
  const model = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
  expect(await replay('--trace', model, '--capacity', '8')).toMatchObject({ code: 2, stderr: expect.stringMatching(/tinymoe.*is neither a route file/) });
  expect(await replay('--trace', '/nowhere/x', '--capacity', '8')).toMatchObject({ code: 2, stderr: expect.stringMatching(/--trace: cannot read \/nowhere\/x: no such file/) });
});
