/** What a coordinator does when more comes than it can take: lets in at a rate, sheds and counts, stretches intervals. */
import { type ServiceError, status } from '@grpc/grpc-js';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { OverloadedError, BudgetExceededError } from '../errors';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';
import { Admission } from './admission';
import { StreamBudget } from './stream-budget';
import { TelemetryPace } from './telemetry-pace';
import { TokenBucket } from './token-bucket';

let redis: TestRedis;
const coordinators: TestCoordinator[] = [];
const agents: TestAgent[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  for (const coordinator of coordinators.splice(0)) await coordinator.close();
});

async function start(env: Record<string, string>, more: { prefix?: string; id?: string } = {}): Promise<TestCoordinator> {
  const coordinator = await startCoordinator(redis.url, { env, ...more });
  coordinators.push(coordinator);
  return coordinator;
}

async function join(where: TestCoordinator, id: string): Promise<TestAgent> {
  const agent = await TestAgent.join(where.gateway, { id });
  agents.push(agent);
  return agent;
}

const retryAfterMs = (error: ServiceError) => Number(error.metadata.get('retry-after-ms')[0]);
const metric = async (coordinator: TestCoordinator, name: string) => {
  const line = (await (await fetch(`${coordinator.http}/metrics`)).text()).split('\n').find((one) => one.startsWith(`${name} `));
  return Number(line?.split(' ').at(-1));
};

test('a bucket gives what it holds, refuses the rest, and fills with time up to its burst', () => {
  let nowMs = 0;
  const bucket = new TokenBucket(10, 20, () => nowMs);
  expect([bucket.take(20), bucket.take(1)]).toEqual([true, false]);
  nowMs = 500;
  expect([bucket.take(5), bucket.take(1)]).toEqual([true, false]);
  nowMs = 60_000;
  expect([bucket.full, bucket.take(21), bucket.take(20)]).toEqual([true, false, true]);
  nowMs = 0;
  expect(bucket.take(1)).toBe(false);
});

test('lets in at its rate, holds a bounded number, and spreads the rest over the time the crowd will take', async () => {
  let nowMs = 0;
  const admission = new Admission({ hellosPerSecond: 10, mostWaitMs: 1000, random: () => 1, now: () => nowMs });
  let entered = 0;
  const enter = () => admission.enter().then(() => { entered += 1; });
  for (let at = 0; at < 20; at += 1) void enter();
  await until('ten are in', () => entered === 10, 5000, 5);
  expect(admission.queue).toBe(10);
  const refused: OverloadedError[] = [];
  for (let at = 0; at < 200; at += 1) await admission.enter().catch((error: OverloadedError) => refused.push(error));
  expect(refused).toHaveLength(200);
  expect(refused[0]!.retryAfterMs).toBeLessThan(refused[199]!.retryAfterMs);
  // 200 refused at ten per second.
  expect(refused[199]!.retryAfterMs).toBeGreaterThan(20_000);
  expect(refused[199]!.retryAfterMs).toBeLessThanOrEqual(30_000);
  nowMs = 500;
  await until('five more are in', () => entered === 15, 5000, 5);
  admission.close();
  await until('nobody waits', () => entered === 20, 5000, 5);
});

test('a device that pauses is forgiven, one that goes on is cut off', () => {
  let nowMs = 0;
  const budget = new StreamBudget({ messagesPerSecond: 2, bytesPerSecond: 1000 }, () => nowMs);
  expect(Array.from({ length: 17 }, () => budget.take(10)).filter(Boolean)).toHaveLength(16);
  expect(budget.take(9000)).toBe(false);
  nowMs = 10_000;
  for (let at = 0; at < 16; at += 1) expect(budget.take(10)).toBe(true);
  for (let at = 0; at < 100; at += 1) expect(budget.take(10)).toBe(false);
  expect(() => budget.take(10)).toThrow(BudgetExceededError);
});

test('the interval grows with the devices, shrinks back to what was set, and ignores small changes', () => {
  const pace = new TelemetryPace({ telemetryIntervalMs: 1000, framesPerSecond: 100 });
  expect([pace.adjust(100), pace.adjust(110)]).toEqual([false, false]);
  expect([pace.adjust(1000), pace.intervalMs]).toEqual([true, 10_000]);
  expect([pace.adjust(1100), pace.intervalMs]).toEqual([false, 10_000]);
  expect([pace.adjust(1_000_000_000), pace.intervalMs]).toEqual([true, 300_000]);
  expect([pace.adjust(0), pace.intervalMs]).toEqual([true, 1000]);
});

test('tells devices another interval while their streams go on', async () => {
  const coordinator = await start({ MOEFLEET_FRAMES_PER_SECOND: '1', MOEFLEET_TELEMETRY_INTERVAL_MS: '1000' });
  const joined: TestAgent[] = [];
  for (const id of ['a', 'b', 'c']) joined.push(await join(coordinator, id));
  expect(joined[0]!.welcome!.telemetryIntervalMs).toBe(1000);
  await until('all know the new interval', () => joined.every((agent) => agent.pace === 3000 || agent.welcome!.telemetryIntervalMs === 3000), 10_000, 5);
  joined[2]!.kill();
  joined[1]!.kill();
  await until('it is back to what was set', () => joined[0]!.pace === 1000, 10_000, 5);
});

test('a storm of hellos is let in at the rate, the rest refused with a time to come again', async () => {
  const coordinator = await start({ MOEFLEET_HELLOS_PER_SECOND: '2' });
  const storm = Array.from({ length: 40 }, (_, at) => {
    const agent = new TestAgent(coordinator.gateway, { id: `d${at}` });
    agents.push(agent);
    agent.hello();
    return agent;
  });
  await until('each is in or refused', () => storm.every((agent) => agent.welcome || agent.ended), 20_000, 20);
  const refused = storm.flatMap((agent) => (agent.ended && agent.ended !== 'ok' ? [agent.ended] : []));
  expect(refused.length).toBeGreaterThan(15);
  for (const error of refused) expect(error).toMatchObject({ code: status.UNAVAILABLE, details: expect.stringContaining('--hellos-per-second') });
  expect(new Set(refused.map(retryAfterMs)).size).toBeGreaterThan(5);
  expect(storm.filter((agent) => agent.welcome).length).toBeGreaterThanOrEqual(2);
});

test('sheds telemetry beyond a device\'s budget and counts it; a flood ends its stream; others do not notice', async () => {
  const coordinator = await start({ MOEFLEET_DEVICE_MESSAGES_PER_SECOND: '5' });
  const calm = await join(coordinator, 'calm');
  const loud = await join(coordinator, 'loud');
  for (let at = 1; at <= 60; at += 1) loud.telemetry({ decodeTokens: BigInt(at) });
  calm.telemetry({ decodeTokens: 7n });
  await until('some was shed', () => metric(coordinator, 'moefleet_coordinator_telemetry_frames_total{outcome="shed"}'), 5000, 20);
  expect(loud.ended).toBeNull();
  for (let at = 1; at <= 200; at += 1) loud.telemetry({ decodeTokens: BigInt(100 + at) });
  const error = await until('its stream has ended', () => loud.ended, 5000, 5) as ServiceError;
  expect(error).toMatchObject({ code: status.RESOURCE_EXHAUSTED, details: expect.stringContaining('--device-messages-per-second') });
  expect(retryAfterMs(error)).toBe(30_000);
  await until('the calm one was counted', async () => (await coordinator.registry.devices.read('calm'))?.telemetry?.decodeTokens === 7n, 5000, 5);
  expect(calm.ended).toBeNull();
});

test('a coordinator that stops tells its devices when to come again, and none is seen as offline meanwhile', async () => {
  const first = await start({}, { id: 'first' });
  const second = await start({}, { id: 'second', prefix: first.prefix });
  const agent = await join(first, 'd');
  agent.telemetry({ decodeTokens: 5n });
  agent.report({ reason: 'after the frame' });
  await until('both have arrived', async () => (await second.registry.devices.read('d'))?.reported?.reason, 5000, 1);
  coordinators.splice(coordinators.indexOf(first), 1);
  await first.close();
  expect(agent.ended).toMatchObject({ code: status.UNAVAILABLE });
  expect(retryAfterMs(agent.ended as ServiceError)).toBeGreaterThanOrEqual(200);
  const between = await second.registry.devices.read('d');
  expect(between?.lease).toMatchObject({ coordinatorId: 'first' });
  // What was on its way when it stopped was counted.
  expect(between?.telemetry?.decodeTokens).toBe(5n);
  expect((await second.registry.coordinators.all()).map(({ id }) => id)).toEqual(['second']);
  await join(second, 'd');
  expect((await second.registry.devices.read('d'))?.lease).toMatchObject({ coordinatorId: 'second' });
});

