import { TestFleet, complete, type DeviceJson } from '../harness/test-fleet';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';
import { CommandError } from '../../services/demo/src/command-line';
import type { RunningAgent } from '../../services/demo/src/local-fleet';

interface RolloutJson { rollout: { state: string; devices: { deviceId: string; state: string }[] } }

const IDS = ['phone-1', 'jetson-1', 'minipc-1'];
let fleet: TestFleet;
let agents: RunningAgent[];

beforeAll(async () => {
  fleet = await new TestFleet().start();
  agents = await Promise.all([
    fleet.agent('phone-1', { maxCache: '3.6MiB', labels: 'class=phone' }),
    fleet.agent('jetson-1', { maxCache: '5.4MiB', labels: 'class=jetson' }),
    fleet.agent('minipc-1', { maxCache: '7.2MiB', labels: 'class=minipc' }),
  ]);
  await fleet.online(...IDS);
});
afterAll(() => fleet?.stop());

async function effectiveLambda(id: string): Promise<number | undefined> {
  return (await fleet.device(id)).reported?.effective.lambda;
}

test('lambda set --all returns when every device has applied it', async () => {
  const begun = Date.now();
  const { rollout } = await fleet.cli<RolloutJson>('lambda', 'set', '0.25', '--all');
  process.stdout.write(`    lambda set 0.25 --all over 3 agents: ${Date.now() - begun} ms, the command's own start included\n`);
  expect(rollout.devices.map((device) => [device.deviceId, device.state]).sort()).toEqual(IDS.map((id) => [id, 'APPLIED']).sort());
  for (const id of IDS) expect(await effectiveLambda(id)).toBe(0.25);
});

test('a pin by selector reaches the devices it names and no other', async () => {
  await fleet.cli('lambda', 'set', '0.4', '--selector', 'class=phone');
  expect(await effectiveLambda('phone-1')).toBe(0.4);
  expect(await effectiveLambda('jetson-1')).toBe(0.25);
  await fleet.cli('lambda', 'auto', '--selector', 'class=phone');
  expect(await effectiveLambda('phone-1')).toBe(0.25);
});

test('lambda auto hands back: without a learner that is 0', async () => {
  await fleet.cli('lambda', 'auto', '--all');
  for (const id of IDS) expect(await effectiveLambda(id)).toBe(0);
});

/** Of decode, all layers together. */
async function swaps(agent: RunningAgent): Promise<number> {
  const metrics = await (await fetch(`${agent.httpUrl}/metrics`)).text();
  return Number(/^moefleet_agent_swaps_total\{phase="decode"\} (\d+)$/m.exec(metrics)![1]);
}

test('routing set --all brings another method into force in every engine, and original takes it back', async () => {
  await fleet.cli('routing', 'set', 'max_rank', '--max-rank', '12', '--top-j', '1', '--all');
  for (const id of IDS) expect((await fleet.device(id)).reported!.effective).toMatchObject({ routing: 'max_rank', maxRank: 12, topJ: 1, lambda: 0 });
  const before = await swaps(agents[0]!);
  await complete(agents[0]!.httpUrl, { tokens: 32 });
  const bent = await swaps(agents[0]!);
  expect(bent).toBeGreaterThan(before);
  await fleet.cli('routing', 'set', 'original', '--all');
  await complete(agents[0]!.httpUrl, { tokens: 32 });
  expect(await swaps(agents[0]!)).toBe(bent);
  await fleet.cli('lambda', 'set', '0,0.1,0.2,0.3,0.3,0.3', '--device', 'phone-1');
  expect((await fleet.device('phone-1')).reported!.effective).toMatchObject({ routing: 'cache_prior', lambdas: [0, 0.1, 0.2, 0.3, 0.3, 0.3] });
  await fleet.cli('routing', 'auto', '--device', 'phone-1');
  await fleet.cli('routing', 'auto', '--all');
});

test('eviction set is in force beside routing, and at lambda 0 the text stays the same', async () => {
  const { text } = await complete(agents[0]!.httpUrl, { tokens: 48, cold: true });
  await fleet.cli('eviction', 'set', 'lfu', '--half-life', '64', '--all');
  for (const id of IDS) expect((await fleet.device(id)).reported!.effective).toMatchObject({ eviction: 'lfu', evictionHalfLifeTokens: 64, lambda: 0 });
  expect((await complete(agents[0]!.httpUrl, { tokens: 48, cold: true })).text).toBe(text);
  await fleet.cli('eviction', 'set', 'adaptive', '--all');
  expect((await fleet.device('phone-1')).reported!.effective.eviction).toBe('adaptive');
  expect((await complete(agents[0]!.httpUrl, { tokens: 48, cold: true })).text).toBe(text);
  await fleet.cli('eviction', 'auto', '--all');
  expect((await fleet.device('phone-1')).reported!.effective.eviction).toBe('adaptive');
});

test('cache set changes capacities, clamped by the device\'s own limit', async () => {
  await fleet.cli('cache', 'set', '2.9MiB', '--device', 'jetson-1');
  const smaller = (await fleet.device('jetson-1')).reported!.effective.capacities;
  expect(Math.max(...smaller)).toBeLessThan(8);
  await fleet.cli('cache', 'set', '1GiB', '--device', 'jetson-1');
  const clamped = (await fleet.device('jetson-1')).reported!.effective.capacities;
  expect(Math.max(...clamped)).toBeLessThanOrEqual(12);
  await fleet.cli('cache', 'auto', '--device', 'jetson-1');
});

test('a device that is not there is named, and the command fails', async () => {
  await expect(fleet.cli('lambda', 'set', '0.1', '--device', 'nobody')).rejects.toThrow(/nobody/);
  await expect(fleet.cli('lambda', 'set', '1.5', '--all')).rejects.toThrow(/1\.5/);
});

test('a second agent with a device id that is taken is refused by name, and the first is not disturbed', async () => {
  const { child } = await fleet.fleet.startAgent({ id: 'phone-1', model: MODEL, maxCache: '3.6MiB', flags: ['--state-dir', `${fleet.folder}/twin`] });
  try {
    await child.until('the refusal', () => (/phone-1/.test(child.log()) && /ALREADY_EXISTS|already/i.test(child.log()) ? true : null), 20_000);
    expect((await fleet.device('phone-1')).online).toBe(true);
    expect((await complete(agents[0]!.httpUrl, { tokens: 4 })).completionTokens).toBe(4);
  } finally {
    await child.stop();
  }
});

test('the coordinator is killed: agents serve on, come back, and desired state is as it was', async () => {
  await fleet.cli('lambda', 'set', '0.3', '--all');
  const before = await fleet.device('minipc-1');
  const generation = complete(agents[2]!.httpUrl, { tokens: 200 });
  const coordinator = fleet.fleet.children.find((child) => child.name === 'coordinator')!;
  coordinator.signal('SIGKILL');
  expect((await generation).completionTokens).toBeGreaterThan(0);
  expect((await complete(agents[0]!.httpUrl, { tokens: 8 })).completionTokens).toBe(8);
  await fleet.fleet.startCoordinator();
  await fleet.online(...IDS);
  const after = await fleet.device('minipc-1');
  expect(after.desiredGeneration).toBe(before.desiredGeneration);
  expect(after.reported!.effective.lambda).toBe(0.3);
  expect(after.drift).toBe(false);
});

test('an agent is killed: it runs its last good spec before it has reached the coordinator', async () => {
  await fleet.cli('lambda', 'set', '0.35', '--device', 'jetson-1');
  await complete(agents[1]!.httpUrl, { tokens: 4 }); // a spec is good once a token has been served under it
  agents[1]!.child.signal('SIGKILL');
  await until('it has ended', () => agents[1]!.child.ended);
  const coordinators = fleet.fleet.children.filter((child) => child.name === 'coordinator');
  await coordinators[coordinators.length - 1]!.stop();
  const again = await fleet.agent('jetson-1', { maxCache: '5.4MiB', labels: 'class=jetson' });
  const metrics = await (await fetch(`${again.httpUrl}/metrics`)).text();
  expect(metrics).toMatch(/moefleet_agent_lambda[^\n]* 0\.35/);
  await fleet.fleet.startCoordinator();
  await fleet.online(...IDS);
  agents[1] = again;
});

test('Redis goes away and comes back: streams hold, commands say what is wrong, then all is whole', async () => {
  const before: DeviceJson = await fleet.device('phone-1');
  const redis = fleet.fleet.children.find((child) => child.name === 'redis')!;
  await redis.stop();
  const refused = await fleet.cli('lambda', 'set', '0.2', '--all').then(() => null, (error: CommandError) => error);
  expect(refused).toBeInstanceOf(CommandError);
  expect(refused!.said).toMatch(/redis/i);
  expect((await complete(agents[0]!.httpUrl, { tokens: 4 })).completionTokens).toBe(4);
  await fleet.fleet.startRedis();
  await until('the coordinator answers again', () => fleet.cli('lambda', 'set', '0.2', '--all').then(() => true, () => false), 30_000, 500);
  const after = await fleet.device('phone-1');
  expect(after.reported!.effective.lambda).toBe(0.2);
  expect(after.desiredGeneration).toBeGreaterThan(before.desiredGeneration);
});
