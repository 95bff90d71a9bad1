import { status } from '@grpc/grpc-js';
import { Proposal, type Rollout, RolloutDevice_State as Row, Routing, ValueSource_Layer as Layer } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { MODEL_HASH, type TestAgentOptions } from '../testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => { coordinator = await startCoordinator(redis.url); });
afterEach(() => coordinator.close());

const join = (options: TestAgentOptions) => coordinator.join(options);

async function flip(to: 'killLambda' | 'releaseLambda', why = ''): Promise<Rollout> {
  let last: Rollout | undefined;
  for await (const { rollout } of coordinator.rollouts[to]({ why, timeoutMs: 5000 }) as AsyncIterable<{ rollout: Rollout }>) last = rollout;
  return last!;
}

function killSwitch() {
  return new Promise((resolve, reject) => coordinator.rollouts.getKillSwitch({}, (error, answer) => (error ? reject(error) : resolve(answer.killSwitch))));
}

const lambda = (value: number) => ({ change: { $case: 'setLambda' as const, value: { lambda: value, topJ: undefined } } });

test('takes every device to its model\'s own routing over every pin, newcomers too, and gives it back', async () => {
  const a = await join({ id: 'a' });
  await join({ id: 'b' });
  await change(coordinator.operator, { ...lambda(0.25) });
  await change(coordinator.operator, { ...lambda(0.4), target: { kind: { $case: 'deviceId', value: 'a' } } });
  const off = await flip('killLambda', 'answers look wrong');
  expect(off.devices.map((device) => Row[device.state])).toEqual(['STATE_APPLIED', 'STATE_APPLIED']);
  expect(a.specs.at(-1)).toMatchObject({ lambda: 0, routing: Routing.ROUTING_ORIGINAL });
  expect(await killSwitch()).toMatchObject({ off: true, why: 'answers look wrong' });
  const { device } = await call(coordinator, 'getDevice', { deviceId: 'a' });
  expect(device!.sources[0]).toEqual({ field: 'lambda', layer: Layer.LAYER_KILL_SWITCH, detail: 'answers look wrong' });

  const newcomer = await join({ id: 'c' });
  await until('the newcomer has it', () => newcomer.specs[0]?.routing === Routing.ROUTING_ORIGINAL, 5000, 5);
  const [pinned] = (await change(coordinator.operator, { ...lambda(0.3) })).slice(-1);
  expect(new Set(pinned!.devices.map((each) => each.reason))).toEqual(new Set(['the kill switch stands']));

  await flip('releaseLambda');
  expect(await killSwitch()).toMatchObject({ off: false });
  expect(a.specs.at(-1)!.lambda).toBe(0.4);
  await until('the newcomer has the fleet\'s', () => newcomer.specs.at(-1)!.lambda === 0.3, 5000, 5);
});

test('leaves cache, eviction and tracing as they are', async () => {
  const a = await join({ id: 'a' });
  await change(coordinator.operator, { change: { $case: 'setCache', value: { size: { $case: 'capacity', value: 8 } } } });
  await flip('killLambda');
  expect(a.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_ORIGINAL, cache: { $case: 'capacities', value: { experts: [8, 8, 8] } } });
});

test('refuses the learner with the reason, and is held by every coordinator and after a restart', async () => {
  await join({ id: 'a' });
  await flip('killLambda', 'noon');
  const proposals = [{ ...Proposal.decode(new Uint8Array()), deviceId: 'a', modelHash: MODEL_HASH, proposed: true, lambda: 0.3 }];
  await expect(call(coordinator, 'propose', { proposals })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringMatching(/noon.*moefleet lambda on/) as string });
  const other = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b' });
  try {
    await expect(call(other, 'propose', { proposals })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION });
  } finally {
    await other.close();
  }
});

test('a record that cannot be read counts as held', async () => {
  const agent = await join({ id: 'a' });
  await change(coordinator.operator, { ...lambda(0.25) });
  const key = `${coordinator.prefix}:{pins}`;
  await coordinator.registry.link.run(key, (client) => client.hset(key, 'kill-switch', '{'));
  expect(await killSwitch()).toMatchObject({ off: true, why: 'its record in Redis is damaged' });
  await change(coordinator.operator, { ...lambda(0.3) });
  expect(agent.specs.at(-1)!.routing).toBe(Routing.ROUTING_ORIGINAL);
});
