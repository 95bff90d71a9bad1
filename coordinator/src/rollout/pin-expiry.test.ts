/** Pins that end, over real gRPC and Redis, by a clock of the test's own. */
import { credentials, status } from '@grpc/grpc-js';
import { ChangeConfigRequest, type ExplainConfigResponse, InventoryServiceClient, Staging, type StagedRollout, StagedRollout_State as State, ValueSource_Layer as Layer } from '@moefleet/proto';
import { Redis } from 'ioredis';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import type { TestAgent } from '../testing/test-agent';
import { call, change, randomPrefix, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

const HOUR_MS = 3_600_000;

let redis: TestRedis;
let prefix: string;
let coordinator: TestCoordinator;
let clockMs: number;
const now = () => clockMs;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  clockMs = Date.now();
  prefix = randomPrefix();
  coordinator = await startCoordinator(redis.url, { prefix, now });
});
afterEach(() => coordinator.close());

const on = (deviceId: string) => ({ kind: { $case: 'deviceId' as const, value: deviceId } });
const where = (expression: string) => ({ kind: { $case: 'selector' as const, value: { matchLabels: {}, expression } } });
const lambda = (value: number, expiresInMs?: number): Partial<ChangeConfigRequest> =>
  ({ change: { $case: 'setLambda', value: { lambda: value, topJ: undefined } }, why: 'trial', expiresInMs: expiresInMs === undefined ? undefined : BigInt(expiresInMs) });
const lambdaOf = (agent: TestAgent) => agent.specs.at(-1)?.lambda;
const audited = async (who: string) => (await coordinator.registry.audit.latest(0, 50, (entry) => entry.who === who)).entries;

function explain(deviceId: string): Promise<ExplainConfigResponse> {
  const client = new InventoryServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
  return new Promise<ExplainConfigResponse>((resolve, reject) => client.explainConfig({ deviceId }, (error, response) => (error ? reject(error) : resolve(response)))).finally(() => client.close());
}

test('a pin on the fleet ends by itself: its devices run what is below it again, and the audit log says so once', async () => {
  const agents = [await coordinator.join({ id: 'a' }), await coordinator.join({ id: 'b' })];
  const away = await coordinator.join({ id: 'away' });
  await change(coordinator.operator, { change: { $case: 'setTracing', value: { traceRatio: 0.5 } }, expiresInMs: BigInt(HOUR_MS) });
  const [told] = (await change(coordinator.operator, lambda(0.3, 2 * HOUR_MS))).slice(-1);
  expect(told!.what).toBe(`lambda 0.3 on all devices until ${new Date(clockMs + 2 * HOUR_MS).toISOString()}`);
  await away.leave();
  const device = (await call(coordinator, 'getDevice', { deviceId: 'a' })).device!;
  expect(device.sources.find(({ field }) => field === 'lambda')).toMatchObject({ layer: Layer.LAYER_FLEET_PIN, expiresMs: BigInt(clockMs + 2 * HOUR_MS) });
  clockMs += 2 * HOUR_MS - 1;
  await until('the one before has ended', () => agents.every((agent) => agent.specs.at(-1)?.traceRatio === undefined), 10_000, 10);
  for (const agent of agents) expect(lambdaOf(agent)).toBe(0.3);
  clockMs += 1;
  expect((await coordinator.registry.pins.shared()).fleet).toEqual({});
  await until('all are at what is below', () => agents.every((agent) => lambdaOf(agent) === undefined), 10_000, 10);
  await until('it is in the audit log', async () => (await audited('system')).length > 1, 5000, 10);
  expect(await audited('system')).toMatchObject([{ what: 'the tracing pin on all devices has ended: its time was over' }, { what: 'the lambda pin on all devices has ended: its time was over', why: 'trial', subject: { t: 'all' }, before: expect.stringContaining('"lambda":0.3') as string }]);
  await until('the pin is away', async () => {
    const raw = new Redis(redis.url);
    try { return await raw.hlen(`${prefix}:{pins}`) === 0 && await raw.zcard(`${prefix}:{pins}:expiry`) === 0; } finally { raw.disconnect(); }
  }, 5000, 20);
  const back = await coordinator.join({ id: 'away' });
  await until('one that was away is at it too', () => back.desired.length > 0 && lambdaOf(back) === undefined, 5000, 10);
});

test('pins of a device and of a group end each by itself, and show what they hid', async () => {
  const agent = await coordinator.join({ id: 'a', labels: { class: 'phone' } });
  await change(coordinator.operator, lambda(0.1));
  await change(coordinator.operator, { ...lambda(0.2, 2 * HOUR_MS), target: where('class=phone') });
  await change(coordinator.operator, { ...lambda(0.3, HOUR_MS), target: on('a') });
  const [field] = (await explain('a')).fields.filter(({ source }) => source!.field === 'lambda');
  expect(field!.source).toMatchObject({ layer: Layer.LAYER_DEVICE_PIN, expiresMs: BigInt(clockMs + HOUR_MS) });
  expect(field!.overridden.map(({ layer, expiresMs }) => [layer, expiresMs])).toEqual([[Layer.LAYER_GROUP_PIN, BigInt(clockMs + 2 * HOUR_MS)], [Layer.LAYER_FLEET_PIN, undefined]]);
  clockMs += HOUR_MS;
  await until('the group\'s', () => lambdaOf(agent) === 0.2, 10_000, 10);
  clockMs += HOUR_MS;
  await until('the fleet\'s', () => lambdaOf(agent) === 0.1, 10_000, 10);
  await until('both are told', async () => (await audited('system')).length === 2, 5000, 10);
  expect((await audited('system')).map(({ what }) => what)).toEqual(['the lambda pin on device a has ended: its time was over', 'the lambda pin on devices with class=phone has ended: its time was over']);
});

test('one that is set anew before its end lasts as the new one says', async () => {
  const agent = await coordinator.join({ id: 'a' });
  await change(coordinator.operator, lambda(0.2, HOUR_MS));
  await change(coordinator.operator, lambda(0.3, 3 * HOUR_MS));
  await change(coordinator.operator, { change: { $case: 'setTracing', value: { traceRatio: 0.5 } }, expiresInMs: BigInt(HOUR_MS) });
  await change(coordinator.operator, { change: { $case: 'setTracing', value: { traceRatio: 0.25 } } });
  clockMs += 2 * HOUR_MS;
  await until('what was noted is forgotten', async () => (await coordinator.registry.pinExpiry.due(clockMs, 10)).length === 0, 10_000, 20);
  expect((await coordinator.registry.pins.shared()).fleet).toMatchObject({ lambda: { lambda: 0.3 }, tracing: { traceRatio: 0.25 } });
  expect(await audited('system')).toEqual([]);
  expect(lambdaOf(agent)).toBe(0.3);
});

test('with several coordinators it ends once, and another goes on when the one with the turn is gone', async () => {
  const other = await startCoordinator(redis.url, { prefix, now, id: 'coordinator-b' });
  const agent = await other.join({ id: 'a' });
  await change(coordinator.operator, lambda(0.2, HOUR_MS));
  clockMs += HOUR_MS;
  await until('it has ended', () => agent.desired.length === 2 && lambdaOf(agent) === undefined, 10_000, 10);
  await until('it is told', async () => (await audited('system')).length > 0, 5000, 10);
  await change(coordinator.operator, lambda(0.3, HOUR_MS));
  await coordinator.close();
  coordinator = other;
  clockMs += HOUR_MS;
  await until('this too has ended', () => lambdaOf(agent) === undefined && agent.desired.length === 4, 15_000, 10);
  await until('each is told once', async () => (await audited('system')).length === 2, 5000, 10);
});

test('is not taken away where it was replaced while its devices were brought in line', async () => {
  await coordinator.join({ id: 'a' });
  await change(coordinator.operator, lambda(0.2, HOUR_MS));
  const { pinExpiry } = coordinator.registry;
  const stored = (await pinExpiry.read({ t: 'fleet' }, 'lambda'))!;
  await change(coordinator.operator, lambda(0.4));
  expect(await pinExpiry.remove({ t: 'fleet' }, 'lambda', stored)).toBe(false);
  expect((await coordinator.registry.pins.shared()).fleet.lambda).toMatchObject({ lambda: 0.4 });
});

test('a rollout whose value ends while it is under way is taken back', async () => {
  const fleet = [await coordinator.join({ id: 'a' }), await coordinator.join({ id: 'b' })];
  await change(coordinator.operator, lambda(0.1));
  const started = await new Promise<StagedRollout>((resolve, reject) => coordinator.rollouts.startRollout(
    { change: ChangeConfigRequest.fromPartial({ target: { kind: { $case: 'all', value: true } }, ...lambda(0.3, HOUR_MS) } as object), staging: Staging.fromPartial({ stages: '1,100%', soakMs: 60_000 }) },
    (error, { rollout } = { rollout: undefined }) => (error ? reject(error) : resolve(rollout!))));
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.3), 10_000, 10);
  clockMs += HOUR_MS;
  const ended = await until('it is taken back', async () => {
    const { rollout } = await new Promise<{ rollout: StagedRollout | undefined }>((resolve, reject) => coordinator.rollouts.getStagedRollout({ rolloutId: started.id }, (error, answer) => (error ? reject(error) : resolve(answer))));
    return rollout!.state === State.STATE_ROLLED_BACK ? rollout! : null;
  }, 15_000, 25);
  expect(ended.reason).toBe('the time that was set for its value is over');
  for (const agent of fleet) expect(lambdaOf(agent)).toBe(0.1);
});

test('a group that no selector can name, and one that is no place at all, are dropped from the notes', async () => {
  const raw = new Redis(redis.url);
  try {
    await raw.zadd(`${prefix}:{pins}:expiry`, 1, 'lambda|group:region in eu', 1, 'beauty|fleet', 1, 'lambda|device:../x', 1, 'lambda|fleet');
    expect(await coordinator.registry.pinExpiry.due(clockMs, 10)).toEqual([{ place: { t: 'fleet' }, field: 'lambda', member: 'lambda|fleet' }]);
    await until('none is left', async () => await raw.zcard(`${prefix}:{pins}:expiry`) === 0, 10_000, 20);
  } finally {
    raw.disconnect();
  }
});

test.each<[string, Partial<ChangeConfigRequest>, RegExp]>([
  ['with a change that clears', { change: { $case: 'clearLambda', value: {} }, expiresInMs: BigInt(HOUR_MS) }, /expires_in_ms: 3600000 is not possible with a change that clears/],
  ['of no time at all', lambda(0.2, 0), /expires_in_ms: 0 is not a time from 1 s to 365 days/],
  ['beyond all bounds', { ...lambda(0.2), expiresInMs: 2n ** 63n }, /expires_in_ms/],
])('an end %s is refused by name', async (_, request, says) => {
  await coordinator.join({ id: 'a' });
  await expect(change(coordinator.operator, request)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(says) as string });
  expect((await coordinator.registry.pins.shared()).fleet).toEqual({});
});
