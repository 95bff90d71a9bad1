/**
 * An agent beside a program that wants its memory, both in one control group: the cache gives way before the kernel has
 * to choose whom to kill, and the coordinator is told. Without the watch the same neighbour costs the engine its life.
 */
import { join } from 'node:path';
import { Child } from '../../services/demo/src/child-process';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { moefleet } from '../../services/demo/src/command-line';
import { memoryGroupOrSkip, type TestMemoryGroup } from '../harness/memory-group';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';
import { complete, type DeviceJson, TestFleet } from '../harness/test-fleet';

const MIB = 2 ** 20;
const LIMIT = 640 * MIB;
const LOW = 96 * MIB;
/** How much more the neighbour wants than there is. */
const TOO_MUCH = 80 * MIB;
const LAYERS = 6;
const EXPERTS = 32;
const TOP_K = 4;

let fleet: TestFleet;
let wide: string;
let group: TestMemoryGroup | null;
const children: Child[] = [];

beforeAll(async () => {
  group = memoryGroupOrSkip('moefleet-test', LIMIT);
  if (!group) return;
  fleet = await new TestFleet().start();
  wide = join(fleet.folder, 'wide.gguf');
  await moefleet(['model', 'widen', MODEL, wide, '--width', '3072'], { operator: fleet.fleet.operator });
}, 120_000);
afterAll(async () => {
  await fleet?.stop();
  await group?.remove();
});
afterEach(async () => {
  for (const child of children.splice(0)) await child.stop();
});

function start(name: string, command: string, args: string[]): Child {
  const child = Child.start({ name, ...group!.wrap(command, args), logPath: join(fleet.folder, `${name}.log`), keep: false, env: { MOEFLEET_LOG_LEVEL: 'info' } });
  children.push(child);
  return child;
}

/** An agent with room for every expert, its cache filled; what it says to a prompt at lambda 0. */
async function filledAgent(id: string, flags: string[]): Promise<{ httpUrl: string; text: string }> {
  const child = start(id, process.execPath, [
    CLI_PATH, 'agent', 'run', '--id', id, '--model', wide, '--max-cache', '1GiB', '--coordinator', fleet.fleet.gateway, '--state-dir', join(fleet.folder, id),
    '--http', '127.0.0.1:0', '--threads', '1', '--otlp-endpoint', '', ...flags,
  ]);
  const httpUrl = String((await child.logLine('listening'))['httpUrl']);
  await until(`${id} is healthy`, async () => (await fetch(`${httpUrl}/healthz`)).ok);
  const { text } = await complete(httpUrl, { tokens: 48 });
  for (const prompt of ['def main(args):', 'The court held that', 'In 1936 the company', 'O Romeo, Romeo']) await complete(httpUrl, { prompt, tokens: 48 });
  return { httpUrl, text };
}

/** Takes what the group has left and `TOO_MUCH` more, a little at a time, and keeps it. */
function startNeighbour(name: string): Child {
  const bytes = LIMIT - group!.usedBytes() + TOO_MUCH;
  return start(name, process.execPath, ['-e', `
    const held = [];
    const timer = setInterval(() => {
      if (held.length * ${4 * MIB} < ${bytes}) return void held.push(Buffer.alloc(${4 * MIB}, 1));
      clearInterval(timer);
      console.log(JSON.stringify({ msg: 'has it' }));
      setInterval(() => {}, 1000);
    }, 50);`]);
}

test('the cache gives way to a neighbour, nobody is killed, the answers stay the same, and the coordinator is told', async () => {
  if (!group) return;
  const { httpUrl, text } = await filledAgent('gives-way', ['--memory-low', String(LOW)]);
  const before = await fleet.device('gives-way');
  expect(before.reported!.effective.capacities).toEqual(new Array(LAYERS).fill(EXPERTS));
  expect(before.reported!.adjustments.filter(({ reason }) => reason.startsWith('memory is short'))).toEqual([]);
  const neighbour = startNeighbour('neighbour');
  const running = until('the neighbour has it', () => neighbour.log().includes('has it'), 120_000);
  // Tokens are made all the while.
  let made = 0;
  while (await Promise.race([running.then(() => false), complete(httpUrl, { tokens: 48 }).then(() => true)])) made += 1;
  await running;
  expect(made).toBeGreaterThan(0);
  expect(group.oomKills()).toBe(0);
  expect(neighbour.ended).toBe(false);
  const told = await until('the coordinator knows', async () => {
    const device = await fleet.device('gives-way');
    return (device.telemetry?.cacheShrinks ?? 0) > 0 && Math.max(...device.reported!.effective.capacities) < EXPERTS ? device : null;
  });
  const { effective, adjustments } = told.reported!;
  expect(Math.min(...effective.capacities)).toBeGreaterThanOrEqual(TOP_K);
  expect(adjustments).toContainEqual(expect.objectContaining({ field: 'cache_bytes', effective: String(effective.cacheBytes), reason: expect.stringMatching(/^memory is short: .*--memory-low/) as string }));
  expect(told.telemetry!.cacheLimitBytes).toBeGreaterThanOrEqual(effective.cacheBytes);
  expect(told.telemetry!.pressureEvictions).toBeGreaterThan(0);
  expect(told.info!.model.hostCrashes).toBe(0);
  const metrics = await (await fetch(`${httpUrl}/metrics`)).text();
  expect(metrics).toMatch(/^moefleet_agent_cache_changes_total\{change="shrink"\} [1-9]/m);
  expect(metrics).toMatch(/^moefleet_agent_capacity_evictions_total\{reason="pressure"\} [1-9]/m);
  expect((await complete(httpUrl, { tokens: 48 })).text).toBe(text);
}, 300_000);

test('with the watch off the kernel takes the engine host, as it was told to, and the agent starts another', async () => {
  if (!group) return;
  const kills = group.oomKills();
  await filledAgent('stands-fast', ['--memory-pressure', 'off']);
  startNeighbour('greedy-neighbour');
  await until('the kernel has killed', () => group!.oomKills() > kills, 120_000);
  const device: DeviceJson = await until('the coordinator hears of it', async () => {
    const now = await fleet.device('stands-fast');
    return (now.info?.model.hostCrashes ?? 0) > 0 ? now : null;
  });
  expect(device.info!.model.message).toMatch(/SIGKILL/);
}, 300_000);
