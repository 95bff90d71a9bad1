/** `moefleet devices watch` against a real coordinator: JSON per line, a live table, a coordinator that is restarted. */
import { type TestCoordinator, startCoordinator } from '../../../../coordinator/src/testing/test-coordinator';
import { until } from '../../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCli } from '../main';
import { runCaptured, Sink } from '../testing/run-captured';

let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => { coordinator = await startCoordinator(redis.url); });
afterEach(() => coordinator.close());

interface Watching { stdout: Sink; stderr: Sink; lines(): Record<string, unknown>[]; end(): Promise<number> }

function watch(args: readonly string[] = [], terminal: { isTTY?: boolean; columns?: number; rows?: number } = {}): Watching {
  const [stdout, stderr] = [Object.assign(new Sink(), terminal), new Sink()];
  const interrupt = new AbortController();
  const env = { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress };
  const running = runCli(['devices', 'watch', ...args], { env, stdout, stderr, signal: interrupt.signal, releaseSignals: () => {} });
  return {
    stdout, stderr,
    lines: () => stdout.text.split('\n').filter(Boolean).map((line) => JSON.parse(line) as Record<string, unknown>),
    end: () => { interrupt.abort(); return running; },
  };
}

/** What a line says in short: the event, the device, what has changed. */
const short = (line: Record<string, unknown>) => [line['event'], (line['device'] as { id?: string } | undefined)?.id ?? line['deviceId'] ?? line['devices'], ...(line['changed'] as string[] | undefined ?? [])].join(' ');

test('tells who is there and each change, one JSON object per line, until Ctrl-C', async () => {
  await coordinator.join({ id: 'b', labels: { class: 'jetson' } });
  const agent = await coordinator.join({ id: 'a', labels: { class: 'phone' } });
  const watching = watch(['--json', '--selector', 'class=phone']);
  await until('all is told', () => watching.lines().some((line) => line['event'] === 'ready'), 10_000, 10);
  expect(watching.lines().map(short)).toEqual(['present a', 'ready 1']);
  expect(watching.lines()[0]).toMatchObject({ timeMs: expect.any(Number) as number, device: { online: true, labels: { class: 'phone' }, telemetry: null } });
  const set = await runCaptured(['lambda', 'set', '0.2', '--all'], { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });
  expect(set.code).toBe(0);
  await until('it runs it', () => watching.lines().some((line) => (line['device'] as { reported?: { state?: string; effective?: unknown }; desired?: { lambda?: number }; drift?: boolean } | undefined)?.desired?.lambda === 0.2
    && (line['device'] as { drift?: boolean }).drift === false), 10_000, 10);
  agent.kill();
  await until('it is offline', () => watching.lines().map(short).includes('changed a online'), 10_000, 10);
  expect(await watching.end()).toBe(130);
  expect(watching.stderr.text).toBe('');
});

test('comes back to a coordinator that is restarted, and tells what has changed meanwhile and nothing twice', async () => {
  await coordinator.join({ id: 'a' });
  const { operatorAddress } = coordinator.addresses();
  const watching = watch(['--json']);
  await until('all is told', () => watching.lines().some((line) => line['event'] === 'ready'), 10_000, 10);
  await coordinator.close();
  await until('it says so', () => /trying again/.test(watching.stderr.text), 10_000, 10);
  coordinator = await startCoordinator(redis.url, { prefix: coordinator.prefix, env: { MOEFLEET_OPERATOR_LISTEN: operatorAddress } });
  await until('it watches again', () => /watching again/.test(watching.stderr.text), 15_000, 10);
  await coordinator.join({ id: 'b' });
  await until('the newcomer is told', () => watching.lines().map(short).includes('joined b'), 10_000, 10);
  expect(watching.lines().map(short).filter((line) => ['present a', 'ready 1'].includes(line))).toHaveLength(2);
  expect(await watching.end()).toBe(130);
});

test('is a table on a terminal, drawn over in place, no wider or longer than there is room', async () => {
  for (const id of ['a', 'b', 'c', 'd']) await coordinator.join({ id, labels: { class: 'phone' } });
  const watching = watch([], { isTTY: true, columns: 70, rows: 8 });
  await until('it is drawn', () => watching.stdout.text.includes('4 devices'), 10_000, 10);
  const set = await runCaptured(['lambda', 'set', '0.2', '--device', 'c'], { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });
  expect(set.code).toBe(0);
  await until('the change is drawn', () => /c +yes +0\.2 .* 1 +APPLIED 1 +no /.test(watching.stdout.text.split('\r\x1b[J').at(-1)!), 10_000, 10);
  expect(await watching.end()).toBe(130);
  const drawings = watching.stdout.text.split('\r\x1b[J').slice(1);
  for (const drawing of drawings) {
    const lines = drawing.split('\n').slice(0, -1);
    expect(lines.length).toBeLessThanOrEqual(7);
    for (const line of lines) expect([...line].length).toBeLessThan(70);
  }
  const last = drawings.at(-1)!.split('\n');
  expect(last[0]).toMatch(/^4 devices, 4 online, 0 not running what they should/);
  expect(last[2]).toMatch(/^ID +ONLINE +λ +CAPACITY +DESIRED +REPORTED +DRIFT +LABELS/);
  expect(last.join('\n')).toMatch(/^c +yes +0\.2 .* 1 +APPLIED 1 +no +class=phone/m);
  expect(last.join('\n')).toMatch(/1 more have not changed for longer; see fewer with --selector/);
});

test('without a terminal is JSON as well; fails where no coordinator ever answered, and for a selector that is none', async () => {
  const watching = watch();
  await until('it is ready', () => watching.lines().length === 1, 10_000, 10);
  expect(short(watching.lines()[0]!)).toBe('ready 0');
  await watching.end();
  expect(await runCaptured(['devices', 'watch', '--operator', '127.0.0.1:1'])).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/cannot reach the coordinator at 127\.0\.0\.1:1/) as string });
  expect(await runCaptured(['devices', 'watch', '--selector', 'region in eu'])).toMatchObject({ code: 2, stderr: expect.stringMatching(/--selector: "region in eu" is no selector/) as string });
});
