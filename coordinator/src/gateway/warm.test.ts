/** From reports of expert use to warm lists: real streams, real Redis. */
import { ExpertUse, type WarmList } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { Keys } from '../registry/keys';
import { RedisLink } from '../registry/redis-link';
import { Registry } from '../registry/registry';
import { MOST_MODELS, MOST_WORKLOADS } from '../registry/warm-store';
import { MODEL_HASH, type TestAgent } from '../testing/test-agent';
import { randomPrefix, startCoordinator, type TestCoordinator, type TestCoordinatorOptions } from '../testing/test-coordinator';
import { createLogger } from '@moefleet/runtime';
import { contributionOf } from '../warm/warm-profile';

let redis: TestRedis;
const coordinators: TestCoordinator[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
afterEach(async () => {
  for (const coordinator of coordinators.splice(0)) await coordinator.close();
});

async function start(intervalSeconds: number, more: TestCoordinatorOptions = {}): Promise<TestCoordinator> {
  const coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_EXPERT_USE_INTERVAL: String(intervalSeconds) }, ...more });
  coordinators.push(coordinator);
  return coordinator;
}

/** 256 tokens that wanted these experts alone, in each of the three layers of the test agent's model. */
function report(sequence: number, experts: number[], over: Partial<ExpertUse> = {}): ExpertUse {
  const wanted = Array<number>(32).fill(0);
  for (const [i, expert] of experts.entries()) wanted[expert] = 200 - i;
  return ExpertUse.fromPartial({ sequence: BigInt(sequence), modelHash: MODEL_HASH, experts: 32, tokens: 256n, layers: [{ wanted }, { wanted }, { wanted }], ...over });
}

const tell = (agent: TestAgent, use: ExpertUse) => agent.send({ $case: 'expertUse', value: use });

async function outcome(coordinator: TestCoordinator, name: string): Promise<number> {
  const text = await (await fetch(`${coordinator.http}/metrics`)).text();
  return Number(new RegExp(`expert_use_reports_total\\{outcome="${name}"\\} (\\d+)`).exec(text)?.[1]);
}

const counted = (coordinator: TestCoordinator, count: number, name = 'counted') => until(`${count} ${name}`, async () => await outcome(coordinator, name) === count);
const first = (list: WarmList | undefined) => list?.layers.map(({ experts }) => experts[0]);

test('a device is told with its welcome how often to report, and a newcomer gets the list of its model and workload', async () => {
  const coordinator = await start(0.2);
  const jetson = await coordinator.join({ id: 'jetson-1', labels: { workload: 'code' } });
  expect(jetson.welcome!.expertUseIntervalMs).toBe(200);
  expect(jetson.warmLists).toEqual([]);
  tell(jetson, report(1, [7, 8, 9]));
  await counted(coordinator, 1);
  const phone = await coordinator.join({ id: 'phone-1', labels: { workload: 'chat' } });
  tell(phone, report(1, [20, 21, 22]));
  await counted(coordinator, 2);
  await until('the registry has both', async () => (await coordinator.registry.warm.profiles(MODEL_HASH, { layers: 3, experts: 32 })).size === 2);
  const newcomer = await coordinator.join({ id: 'jetson-2', labels: { workload: 'code' } });
  const list = await until('its list', () => newcomer.warmLists[0]);
  expect(list).toMatchObject({ modelHash: MODEL_HASH, workload: 'code' });
  expect(list.reports).toBeCloseTo(2, 3);
  // What the fleet uses elsewhere comes in too, while little is known of the workload.
  expect(list.layers.map(({ experts }) => experts)).toEqual(Array(3).fill([7, 8, 9, 20, 21, 22]));
  expect(newcomer.desired).toEqual([]);
});

test('a list that has shifted is sent again, one that has not is not', async () => {
  const coordinator = await start(0.05);
  const agent = await coordinator.join({ id: 'a' });
  let sequence = 0;
  await until('a list', async () => {
    tell(agent, report(sequence += 1, [1, 2, 3, 4]));
    await new Promise((resolve) => { setTimeout(resolve, 60); });
    return agent.warmLists.length > 0;
  });
  for (let i = 0; i < 5; i += 1) {
    tell(agent, report(sequence += 1, [1, 2, 3, 4]));
    await new Promise((resolve) => { setTimeout(resolve, 60); });
  }
  expect(agent.warmLists).toHaveLength(1);
  await until('another list', async () => {
    tell(agent, report(sequence += 1, [11, 12, 13, 14]));
    await new Promise((resolve) => { setTimeout(resolve, 60); });
    return first(agent.warmLists.at(-1))?.[0] === 11;
  });
  expect(agent.warmLists.length).toBeLessThan(6);
});

test('a report counts once and no device more often than its turn, whatever boot and coordinator it claims', async () => {
  const prefix = randomPrefix();
  const [a, b] = [await start(600, { prefix, id: 'coordinator-a' }), await start(600, { prefix, id: 'coordinator-b' })];
  const agent = await a.join({ id: 'liar' });
  tell(agent, report(5, [1]));
  await counted(a, 1);
  tell(agent, report(5, [1]));
  tell(agent, report(4, [1]));
  await counted(a, 2, 'duplicate');
  tell(agent, report(6, [1]));
  await counted(a, 1, 'too_soon');
  const again = await b.join({ id: 'liar', installId: 'install-liar', bootId: 'another-boot' });
  tell(again, report(1, [1]));
  await counted(b, 1, 'too_soon');
  expect(await outcome(a, 'counted')).toBe(1);
  expect(await outcome(b, 'counted')).toBe(0);
});

test('what cannot be true is refused, and what is a burden ends its stream', async () => {
  const coordinator = await start(0.05);
  const agent = await coordinator.join({ id: 'a' });
  tell(agent, report(1, [1], { tokens: 3n }));
  tell(agent, report(2, [1], { experts: 64 }));
  tell(agent, report(3, [1], { layers: [] }));
  tell(agent, report(4, [1], { modelHash: 'cd'.repeat(32) }));
  await counted(coordinator, 4, 'refused');
  expect(agent.ended).toBeNull();
  tell(agent, report(5, [1], { layers: [{ wanted: Array<number>(70_000).fill(1), chosen: [] }] }));
  await until('its stream ends', () => agent.ended);
  expect(String((agent.ended as Error).message)).toMatch(/expert_use\.layers\[0\]/);
});

test('with an interval of 0 nothing is asked for, taken or sent', async () => {
  const coordinator = await start(0);
  const agent = await coordinator.join({ id: 'a' });
  expect(agent.welcome!.expertUseIntervalMs).toBe(0);
  tell(agent, report(1, [1]));
  await counted(coordinator, 1, 'refused');
  expect(agent.warmLists).toEqual([]);
});

describe('the store', () => {
  const shape = { layers: 3, experts: 32, topK: 4 };
  const one = () => {
    const made = contributionOf(report(1, [1, 2]), shape);
    if ('refused' in made) throw new Error(made.refused);
    return made;
  };
  let link: RedisLink;
  let registry: Registry;
  let prefix: string;

  beforeEach(async () => {
    const log = createLogger('test', 'silent');
    link = new RedisLink({ url: redis.url, cluster: false, sentinel: '' }, log);
    prefix = randomPrefix();
    registry = new Registry(link, { prefix, coordinatorId: 'c' }, log);
    await link.start();
  });
  afterEach(() => link.stop());

  test('two writers at once lose nothing', async () => {
    await Promise.all(Array.from({ length: 6 }, () => registry.warm.add('ab', 'code', one(), 1000)));
    const profile = (await registry.warm.profiles('ab', shape)).get('code')!;
    expect(profile.reports).toBeCloseTo(6, 5);
  });

  test('workloads and models are bounded: the rest is summed as other, and the model not seen for longest goes', async () => {
    for (let i = 0; i < MOST_WORKLOADS + 4; i += 1) expect(await registry.warm.add('ab', `w${i}`, one(), 1000)).toBe(true);
    const profiles = await registry.warm.profiles('ab', shape);
    expect(profiles.size).toBe(MOST_WORKLOADS);
    expect(profiles.get('other')!.reports).toBe(5);
    for (let i = 1; i < MOST_MODELS; i += 1) expect(await registry.warm.add(`m${i}`, '', one(), 2000)).toBe(true);
    expect(await registry.warm.add('one-too-many', '', one(), 3000)).toBe(false);
    expect(await registry.warm.add('one-too-many', '', one(), 2000 + 3_600_000)).toBe(true);
    expect((await registry.warm.profiles('ab', shape)).size).toBe(0);
  });

  test('bytes that are no profile are left out and replaced', async () => {
    await registry.warm.add('ab', 'code', one(), 1000);
    const key = new Keys(prefix).warmProfiles('ab:3x32');
    await link.run(key, (client) => client.hset(key, 'use|code', 'not a profile'));
    expect((await registry.warm.profiles('ab', shape)).size).toBe(0);
    await registry.warm.add('ab', 'code', one(), 1000);
    expect((await registry.warm.profiles('ab', shape)).get('code')!.reports).toBe(1);
  });
});
