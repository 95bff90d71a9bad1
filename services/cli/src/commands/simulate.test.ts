import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCaptured } from '../testing/run-captured';

// The engine runs in a child process, made from what was built.
const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const EVAL = ['engine', 'eval', '--model', join(FIXTURES, 'tinymoe-17m-q8_0.gguf'), '--text', join(FIXTURES, 'wikitext.txt'), '--tokens', '512', '--threads', '1'];

interface Row { policy: string; capacity: number; references: number; misses: number; missRate: number; perLayer?: { layer: number; misses: number }[]; }

let folder: string;
let recorded: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-simulate-'));
  recorded = join(folder, 'own.route.csv');
  const { code, stderr } = await runCaptured([...EVAL, '--capacity', '12', '--record-routes', recorded, '--json']);
  if (code !== 0) throw new Error(stderr);
});
afterAll(() => rmSync(folder, { recursive: true }));

async function simulate(...flags: string[]): Promise<Row[]> {
  const { code, stdout, stderr } = await runCaptured(['engine', 'simulate', '--routes', recorded, ...flags, '--json']);
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Row[];
}

test('misses exactly what the evaluation of the same routes missed, policy by policy', async () => {
  for (const [policy, flags] of [['lru', []], ['lfu', ['--half-life', '64']], ['lfru', []]] as const) {
    const { stdout } = await runCaptured([...EVAL, '--capacity', '12', '--eviction', policy, ...flags, '--json']);
    const evaluated = JSON.parse(stdout) as { misses: number; perLayer: { misses: number }[] };
    const [row] = await simulate('--policy', policy, '--capacity', '12', '--per-layer', ...flags);
    expect(row).toMatchObject({ policy, capacity: 12, references: 512 * 6 * 4, misses: evaluated.misses, missRate: evaluated.misses / (512 * 6 * 4) });
    expect(row!.perLayer!.map((layer) => layer.misses)).toEqual(evaluated.perLayer.map((layer) => layer.misses));
  }
});

test('gives a row for each policy and capacity, none below Belady', async () => {
  const rows = await simulate('--capacity', '8,16');
  expect(rows.map((row) => Object.keys(row))).toEqual(Array(rows.length).fill(['policy', 'capacity', 'references', 'misses', 'missRate']));
  for (const capacity of [8, 16]) {
    const of = rows.filter((row) => row.capacity === capacity);
    expect(of.map((row) => row.policy)).toEqual(['lru', 'lfu', 'lfru', 'adaptive', 'belady']);
    const bound = of.find((row) => row.policy === 'belady')!;
    for (const row of of) expect(row.misses).toBeGreaterThanOrEqual(bound.misses);
  }
  const { stdout } = await runCaptured(['engine', 'simulate', '--routes', recorded, '--capacity', '8']);
  expect(stdout).toMatch(/3072 events in 6 layers, 4 of 32 experts each, phase 1/);
  expect(stdout).toMatch(/belady +8 +12288 +\d+ +[\d.]+% +1.000\n/);
});

test('follows changes of capacity where they stand in the file', async () => {
  const lines = readFileSync(recorded, 'utf8').split('\n');
  const changes = Array.from({ length: 6 }, (_, layer) => `# capacity layer=${layer} experts=8`);
  const misses = async (name: string, at: number) => {
    const path = join(folder, name);
    writeFileSync(path, [...lines.slice(0, at), ...changes, ...lines.slice(at)].join('\n'));
    const { stdout } = await runCaptured(['engine', 'simulate', '--routes', path, '--policy', 'lru', '--capacity', '16', '--json']);
    return (JSON.parse(stdout) as Row[])[0]!.misses;
  };
  const [eight, sixteen] = (await simulate('--policy', 'lru', '--capacity', '8,16')).map((row) => row.misses);
  const header = lines.findIndex((line) => line.startsWith('turn,'));
  expect(await misses('from-the-start.csv', header + 1)).toBe(eight);
  const later = await misses('later.csv', header + 1 + 6 * 4 * 200);
  expect(later).toBeGreaterThan(sixteen!);
  expect(later).toBeLessThan(eight!);
});

test.each([
  ['a policy that is none', ['--policy', 'lru,fifo', '--capacity', '8'], /--policy.*'lru,fifo'.*lru,lfu,lfru/],
  ['no capacity', [], /--capacity <n>' not specified/],
  ['a capacity that is no number', ['--capacity', '8,x'], /'8,x'.*integer from 1/],
  ['a capacity below what a token needs', ['--capacity', '8,3'], /--capacity: 3 is below the 4 experts one token of .*own.route.csv needs; use 4 or more/],
  ['a phase that is not there', ['--capacity', '8', '--phase', '7'], /--phase: .*own.route.csv holds no rows of phase 7; use 1/],
  ['a negative half-life', ['--capacity', '8', '--half-life=-1'], /--half-life.*number from 0/],
])('refuses %s', async (_, flags, line) => {
  const { code, stdout, stderr } = await runCaptured(['engine', 'simulate', '--routes', recorded, ...flags, '--json']);
  expect(stderr).toMatch(line);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('refuses a file that is damaged, naming line and value, and one that is not there', async () => {
  const damaged = join(folder, 'damaged.csv');
  const lines = readFileSync(recorded, 'utf8').split('\n');
  lines[100] = lines[100]!.replace(/\d+$/, '99');
  writeFileSync(damaged, lines.join('\n'));
  const { code, stderr } = await runCaptured(['engine', 'simulate', '--routes', damaged, '--capacity', '8']);
  expect([code, stderr]).toEqual([2, expect.stringMatching(/damaged.csv:101: expert: '99' is no whole number from 0 to 31; correct it/)]);
  expect((await runCaptured(['engine', 'simulate', '--routes', '/nowhere/r.csv', '--capacity', '8'])).stderr).toMatch(/--routes: cannot read \/nowhere\/r.csv: no such file/);
});

test('does not write routes over a file', async () => {
  const { code, stderr } = await runCaptured([...EVAL, '--record-routes', recorded]);
  expect([code, stderr]).toEqual([2, expect.stringMatching(/--record-routes: .*own.route.csv exists; remove it or name another file/)]);
});
