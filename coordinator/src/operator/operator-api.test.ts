/** Operators and the learner over real gRPC, with agents connected to the same coordinator. */
import { type ClientReadableStream, loadPackageDefinition, credentials, status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import {
  type ChangeConfigRequest, Measure, type MeasureDeviceResponse, Eviction, MeasureResult, Proposal, QualitySurface, RolloutDevice_State as Row, Rollout_State as State, Routing, SetRouting, SurfacePoint,
  ValueSource_Layer as Layer,
} from '@moefleet/proto';
import { dirname, join as joinPath } from 'node:path';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { MODEL_HASH, TestAgent, type TestAgentOptions } from '../testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
const agents: TestAgent[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => { coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_JAEGER_URL: 'http://127.0.0.1:16686/', MOEFLEET_LEARNER_GATE: 'none' } }); });
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  await coordinator.close();
});

async function join(options: TestAgentOptions): Promise<TestAgent> {
  const agent = await TestAgent.join(coordinator.gateway, options);
  agents.push(agent);
  const key = `${coordinator.prefix}:{dev:${options.id}}:state`;
  const has = (field: string) => coordinator.registry.link.run(key, (client) => client.hexists(key, field));
  // Either it has been brought in line, or it is busy with what it was sent.
  await until(`${options.id} has joined`, async () => agent.desired.length > 0 || await has('settledGeneration'), 5000, 5);
  return agent;
}

type Change = NonNullable<ChangeConfigRequest['change']>;
type Target = NonNullable<ChangeConfigRequest['target']>;
const setLambda = (lambda: number, topJ?: number): Change => ({ $case: 'setLambda', value: { lambda, topJ } });
const setRouting = (routing: Partial<SetRouting>): Change => ({ $case: 'setRouting', value: SetRouting.fromPartial(routing) });
const clearLambda: Change = { $case: 'clearLambda', value: {} };
const on = (deviceId: string): Target => ({ kind: { $case: 'deviceId', value: deviceId } });
const where = (matchLabels: Record<string, string>): Target => ({ kind: { $case: 'selector', value: { matchLabels, expression: '' } } });
const matching = (expression: string): Target => ({ kind: { $case: 'selector', value: { matchLabels: {}, expression } } });

async function roll(what: Change, target?: Target, more: Partial<ChangeConfigRequest> = {}) {
  const rollouts = await change(coordinator.operator, { change: what, ...(target ? { target } : {}), ...more });
  const last = rollouts.at(-1)!;
  return { last, rollouts, states: Object.fromEntries(last.devices.map((device) => [device.deviceId, Row[device.state]!.replace('STATE_', '')])) };
}

async function device(id: string) {
  return (await call(coordinator, 'getDevice', { deviceId: id })).device!;
}

async function propose(...proposals: Partial<Proposal>[]): Promise<string> {
  const full = proposals.map((proposal) => ({ ...Proposal.decode(new Uint8Array()), modelHash: MODEL_HASH, proposed: true, reason: 'best within 1%', ...proposal }));
  return (await call(coordinator, 'propose', { proposals: full })).rolloutId;
}

describe('eviction', () => {
  const set = (eviction: Eviction, halfLifeTokens?: number): Change => ({ $case: 'setEviction', value: { eviction, halfLifeTokens } });

  test('is set beside lambda and taken back to the default', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0.25));
    expect((await roll(set(Eviction.EVICTION_LFU, 64))).states).toEqual({ d: 'APPLIED' });
    expect(agent.specs.at(-1)).toMatchObject({ lambda: 0.25, eviction: Eviction.EVICTION_LFU, evictionHalfLifeTokens: 64, modelHash: MODEL_HASH });
    expect((await device('d')).sources.find(({ field }) => field === 'eviction')?.layer).toBe(Layer.LAYER_FLEET_PIN);
    await roll({ $case: 'clearEviction', value: {} });
    expect(agent.specs.at(-1)).toMatchObject({ lambda: 0.25, eviction: Eviction.EVICTION_UNSPECIFIED });
  });

  test('is refused where there is no such policy, or one that does not age', async () => {
    await expect(roll(set(9 as Eviction))).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/set_eviction\.eviction: 9/) as string });
    await expect(roll(set(Eviction.EVICTION_LRU, 5))).rejects.toMatchObject({ details: expect.stringMatching(/half_life_tokens: 5 is not read by lru/) as string });
    await expect(roll(set(Eviction.EVICTION_LFU, -1))).rejects.toMatchObject({ details: expect.stringMatching(/half_life_tokens: -1/) as string });
  });
});

describe('lambda', () => {
  test('is set on the whole fleet and returns when all have applied it', async () => {
    for (const id of ['d1', 'd2', 'd3']) await join({ id });
    const { last, states } = await roll(setLambda(0.25), undefined, { why: 'evening' });
    expect(last.state).toBe(State.STATE_DONE);
    expect(states).toEqual({ d1: 'APPLIED', d2: 'APPLIED', d3: 'APPLIED' });
    for (const agent of agents) expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.25]);
    expect(await device('d2')).toMatchObject({ drift: false, desired: { lambda: 0.25 }, desiredGeneration: 1n });
    expect(agents[0]!.desired[0]!.origin).toBe('operator: lambda 0.25 on all devices (evening)');
  });

  test('0 is sent as a value', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0, 0));
    expect(agent.specs[0]).toMatchObject({ lambda: 0, topJ: 0 });
  });

  test('is set on one device, or on those with a label; the finer one stands', async () => {
    for (const [id, site] of [['d1', 'lab'], ['d2', 'lab'], ['d3', 'roof']]) await join({ id: id!, labels: { site: site! } });
    expect((await roll(setLambda(0.4), on('d1'))).states).toEqual({ d1: 'APPLIED' });
    const group = await roll(setLambda(0.3), where({ site: 'lab' }));
    expect(group.states).toEqual({ d1: 'UNCHANGED', d2: 'APPLIED' });
    expect(group.last.devices[0]!.reason).toBe('the device pin stands');
    expect((await roll(setLambda(0.1))).states).toEqual({ d1: 'UNCHANGED', d2: 'UNCHANGED', d3: 'APPLIED' });
    expect(agents.map((agent) => agent.specs.at(-1)!.lambda)).toEqual([0.4, 0.3, 0.1]);
    expect((await device('d2')).sources.find((source) => source.field === 'lambda')).toEqual({ field: 'lambda', layer: Layer.LAYER_GROUP_PIN, detail: 'site=lab' });
    expect((await roll(clearLambda, on('d1'))).states).toEqual({ d1: 'APPLIED' });
    expect(agents[0]!.specs.at(-1)!.lambda).toBe(0.3);
  });

  test('is set on those a selector of any form matches, however it is written; a joiner that matches gets it', async () => {
    for (const [id, region] of [['d1', 'eu'], ['d2', 'us'], ['d3', 'asia']]) await join({ id: id!, labels: { region: region!, ...(id === 'd2' ? { canary: '' } : {}) } });
    expect((await roll(setLambda(0.4), matching('region in (us,eu),!canary'))).states).toEqual({ d1: 'APPLIED' });
    expect((await roll(setLambda(0.3), matching('!canary, region in (eu,us)'))).states).toEqual({ d1: 'APPLIED' });
    expect((await coordinator.registry.pins.shared()).groups.map((group) => group.selector)).toEqual(['!canary,region in (eu,us)']);
    const joiner = await join({ id: 'd4', labels: { region: 'us' } });
    await until('it has it', () => joiner.specs[0]?.lambda === 0.3, 5000, 5);
    const listed = await call(coordinator, 'listDevices', { selector: { matchLabels: { region: 'us' }, expression: 'canary' }, pageSize: 0, pageToken: '' });
    expect(listed.devices.map((found) => found.id)).toEqual(['d2']);
    await expect(roll(setLambda(0.1), matching('region in eu'))).rejects.toMatchObject({
      code: status.INVALID_ARGUMENT, details: expect.stringMatching(/target\.selector\.expression: "region in eu" is not a selector \(at character 11: expected "\("/) as string,
    });
  });

  test('set again to what runs changes nothing', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0.25));
    const { last, states } = await roll(setLambda(0.25));
    expect(states).toEqual({ d: 'UNCHANGED' });
    expect(last.state).toBe(State.STATE_DONE);
    expect(agent.desired).toHaveLength(1);
  });

  test('goes back to the learner, who never overrides a pin', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0.25));
    expect(await propose({ deviceId: 'd', lambda: 0.1, topJ: 1 })).toBe('');
    expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.25]);
    expect((await roll(clearLambda)).states).toEqual({ d: 'APPLIED' });
    expect(agent.specs.at(-1)).toMatchObject({ lambda: 0.1, topJ: 1, modelHash: MODEL_HASH });
    expect((await roll(clearLambda)).last.devices[0]!.reason).toBe('there was no fleet pin to clear');
  });

  test('gives way to another routing method, and that to lambda again', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0.25, 1));
    expect((await roll(setRouting({ routing: Routing.ROUTING_MAX_RANK, maxRank: 8, biasPrefill: true }))).states).toEqual({ d: 'APPLIED' });
    expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_MAX_RANK, maxRank: 8, biasPrefill: true, lambda: 0, topJ: undefined, modelHash: MODEL_HASH });
    await roll(setRouting({ routing: Routing.ROUTING_CACHE_PRIOR, lambdas: [0.1, 0.2, 0.3] }));
    expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambdas: [0.1, 0.2, 0.3], lambda: 0.1, maxRank: undefined });
    await roll(setLambda(0.2));
    expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambdas: [], lambda: 0.2 });
    expect((await roll(clearLambda)).states).toEqual({ d: 'APPLIED' });
    expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_UNSPECIFIED, lambda: undefined });
  });

  test.each<[Partial<SetRouting>, RegExp]>([
    [{ routing: 99 as Routing }, /set_routing\.routing: 99/],
    [{ routing: Routing.ROUTING_CACHE_PRIOR }, /set_routing\.lambda: "nothing"/],
    [{ routing: Routing.ROUTING_MAX_RANK, lambda: 0.3 }, /set_routing\.lambda: 0\.3 is not read by max_rank/],
    [{ routing: Routing.ROUTING_ORIGINAL, biasPrefill: true }, /set_routing\.bias_prefill/],
    [{ routing: Routing.ROUTING_PRUNED, topJ: 0 }, /set_routing\.top_j: 0.*from 1/],
    [{ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.1, lambdas: [0.1, 0.1, 0.1] }, /possible beside set_routing\.lambdas/],
    [{ routing: Routing.ROUTING_CACHE_PRIOR, lambdas: [0.1, 1.5, 0.1] }, /set_routing\.lambdas: 1\.5/],
    [{ routing: Routing.ROUTING_CACHE_PRIOR, lambdas: [0.1, 0.2] }, /set_routing\.lambdas: "2 values".*device d has 3/],
    [{ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 1.1 }, /set_routing\.mass_threshold: 1\.1/],
  ])('refuses %j for the whole change', async (routing, says) => {
    const agent = await join({ id: 'd' });
    await expect(roll(setRouting(routing))).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(says) as string });
    expect(agent.desired).toHaveLength(0);
  });

  test('names the device that refuses, with its reason', async () => {
    await join({ id: 'd1' });
    await join({ id: 'd2', onDesired: 'refuse' });
    const { last, states } = await roll(setLambda(0.25));
    expect(last.state).toBe(State.STATE_INCOMPLETE);
    expect(states).toEqual({ d1: 'APPLIED', d2: 'FAILED' });
    expect(last.devices[1]!.reason).toBe('capacity does not fit');
    expect((await roll(setLambda(0.25))).states).toEqual({ d1: 'UNCHANGED', d2: 'FAILED' });
  });

  test('does not wait for a device that is offline; it gets the change when it comes back', async () => {
    await join({ id: 'd1' });
    const absent = await join({ id: 'd2' });
    await absent.leave();
    await until('it is offline', async () => !(await device('d2')).online, 5000, 5);
    const { last, states } = await roll(setLambda(0.25));
    expect(states).toEqual({ d1: 'APPLIED', d2: 'OFFLINE' });
    expect(last.state).toBe(State.STATE_DONE);
    const back = await join({ id: 'd2' });
    await until('it has it', () => back.specs[0]?.lambda === 0.25, 5000, 5);
    const told = await until('the rollout tells', async () => (await call(coordinator, 'getRollout', { rolloutId: last.id })).rollout, 5000, 5);
    expect(told.id).toBe(last.id);
  });

  test('a device that leaves in the middle is offline, one that does not answer is named at the deadline', async () => {
    const leaver = await join({ id: 'd1', onDesired: 'start only' });
    await join({ id: 'd2', onDesired: 'ignore' });
    const rolling = roll(setLambda(0.25), undefined, { timeoutMs: 1500 });
    await until('it has begun', () => leaver.desired.length, 5000, 5);
    leaver.kill();
    const { last, states } = await rolling;
    expect(states).toEqual({ d1: 'OFFLINE', d2: 'PENDING' });
    expect(last.state).toBe(State.STATE_INCOMPLETE);
  });

  test('reaches a device that joins between the look at who is there and the writing of the pin', async () => {
    await join({ id: 'early' });
    const { pins } = coordinator.registry;
    const set = pins.set.bind(pins);
    pins.set = async (...args) => {
      await join({ id: 'late' });
      return set(...args);
    };
    const { states } = await roll(setLambda(0.25));
    expect(states).toEqual({ early: 'APPLIED', late: 'APPLIED' });
    for (const agent of agents) expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.25]);
  });

  test('a newer change supersedes one that has not been applied', async () => {
    const agent = await join({ id: 'd', onDesired: 'start only' });
    const first = roll(setLambda(0.2));
    await until('it has begun', () => agent.desired.length === 1, 5000, 5);
    const second = roll(setLambda(0.3));
    expect((await first).states).toEqual({ d: 'SUPERSEDED' });
    await until('the newer one has arrived', () => agent.desired.length === 2, 5000, 5);
    agent.apply(agent.desired[1]!);
    expect((await second).states).toEqual({ d: 'APPLIED' });
  });

  test('many changes at once end in one state everywhere', async () => {
    for (const id of ['d1', 'd2']) await join({ id });
    const values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
    await Promise.all(values.map((lambda) => roll(setLambda(lambda))));
    await until('both run the same', async () => {
      const [one, two] = [await device('d1'), await device('d2')];
      return !one.drift && !two.drift && one.desired?.lambda === two.desired?.lambda && values.includes(one.desired!.lambda!);
    }, 5000, 20);
    expect((await coordinator.registry.pins.shared()).fleet.lambda!.lambda).toBe((await device('d1')).desired!.lambda);
  });

  test('does not follow a device to another model', async () => {
    const agent = await join({ id: 'd' });
    await roll(setLambda(0.25));
    const other = 'cd'.repeat(32);
    agent.send({ $case: 'info', value: { ...agent.info, model: { ...agent.info.model!, hash: other } } });
    await until('lambda is gone', () => agent.specs.length === 2, 5000, 5);
    expect(agent.specs[1]!.lambda).toBeUndefined();
    expect((await roll(setLambda(0.3))).states).toEqual({ d: 'APPLIED' });
    expect(agent.specs.at(-1)).toMatchObject({ lambda: 0.3, modelHash: other });
  });
});

test('cache sizes, tracing and sampling are pinned field by field', async () => {
  const agent = await join({ id: 'd' });
  await roll({ $case: 'setCache', value: { size: { $case: 'capacity', value: 8 } } });
  await roll({ $case: 'setTracing', value: { traceRatio: 0.5 } });
  await roll({ $case: 'setRouterSampling', value: { sampling: { windowTokens: 32, bytesPerHour: 1_000_000n } } });
  expect(agent.specs.at(-1)).toMatchObject({ lambda: undefined, cache: { $case: 'capacities', value: { experts: [8, 8, 8] } }, traceRatio: 0.5, routerSampling: { windowTokens: 32, bytesPerHour: 1_000_000n } });
  await roll({ $case: 'setCache', value: { size: { $case: 'cacheBytes', value: 4096n } } });
  await roll({ $case: 'setRouterSampling', value: { sampling: undefined } });
  expect(agent.specs.at(-1)).toMatchObject({ cache: { $case: 'cacheBytes', value: 4096n }, routerSampling: undefined });
  await roll({ $case: 'clearCache', value: {} });
  expect(agent.specs.at(-1)!.cache).toBeUndefined();
});

test.each<[string, Partial<ChangeConfigRequest>, RegExp]>([
  ['a lambda above 1', { change: setLambda(1.5) }, /set_lambda\.lambda: 1\.5/],
  ['a negative lambda', { change: setLambda(-0.1) }, /set_lambda\.lambda: -0\.1/],
  ['a lambda that is no number', { change: setLambda(NaN) }, /set_lambda\.lambda: NaN/],
  ['an endless lambda', { change: setLambda(Infinity) }, /set_lambda\.lambda: Infinity/],
  ['a topJ beyond all models', { change: setLambda(0.1, 1_000_000) }, /set_lambda\.top_j: 1000000/],
  ['a capacity of 0', { change: { $case: 'setCache', value: { size: { $case: 'capacity', value: 0 } } } }, /set_cache\.capacity: 0/],
  ['a capacity below top-K', { change: { $case: 'setCache', value: { size: { $case: 'capacity', value: 3 } } } }, /set_cache\.capacity: 3 is not from 4 \(top-K\) to 32 \(experts\), as the model of device d/],
  ['a capacity above the number of experts', { change: { $case: 'setCache', value: { size: { $case: 'capacity', value: 33 } } } }, /set_cache\.capacity: 33/],
  ['no cache size', { change: { $case: 'setCache', value: { size: undefined } } }, /set_cache\.size/],
  ['a cache beyond 2^53', { change: { $case: 'setCache', value: { size: { $case: 'cacheBytes', value: 2n ** 60n } } } }, /cache_bytes: 1152921504606846976/],
  ['a trace ratio of 2', { change: { $case: 'setTracing', value: { traceRatio: 2 } } }, /trace_ratio: 2/],
  ['a window of no tokens', { change: { $case: 'setRouterSampling', value: { sampling: { windowTokens: 0, bytesPerHour: 1n } } } }, /window_tokens: 0/],
  ['no change', { change: undefined }, /change: undefined|change: "nothing"/],
  ['no target', { change: clearLambda, target: { kind: undefined } }, /target/],
  ['all: false', { change: clearLambda, target: { kind: { $case: 'all', value: false } } }, /target\.all: false/],
  ['an empty selector', { change: clearLambda, target: where({}) }, /target\.selector: "nothing"/],
  ['a label that is none', { change: clearLambda, target: where({ 'a,b': 'c' }) }, /match_labels: "a,b"/],
  ['a label value that is none', { change: clearLambda, target: where({ a: 'b=c' }) }, /match_labels\.a: "b=c"/],
  ['a device id that is none', { change: clearLambda, target: on('a b') }, /device_id: "a b"/],
  ['a timeout of a day', { change: clearLambda, timeoutMs: 86_400_000 }, /timeout_ms: 86400000/],
])('%s is refused with INVALID_ARGUMENT, and nothing changes', async (_, request, message) => {
  const agent = await join({ id: 'd' });
  const error = await change(coordinator.operator, request).catch((failure: unknown) => failure);
  expect(error).toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(message) });
  expect(await coordinator.registry.pins.shared()).toEqual({ fleet: {}, groups: [], kill: null, staged: [] });
  expect(agent.desired).toEqual([]);
});

test('what does not exist is NOT_FOUND', async () => {
  const { operator } = coordinator;
  await expect(change(operator, { change: clearLambda, target: on('nobody') })).rejects.toMatchObject({ code: status.NOT_FOUND });
  await expect(device('nobody')).rejects.toMatchObject({ code: status.NOT_FOUND });
  await expect(call(coordinator, 'getRollout', { rolloutId: 'ro-1' })).rejects.toMatchObject({ code: status.NOT_FOUND });
});

test('devices are listed with what they run, what they count, and where their trace is', async () => {
  const agent = await join({ id: 'd1', labels: { site: 'lab' } });
  await join({ id: 'd2' });
  agent.telemetry({ decodeTokens: 64n, lastTrace: { requestId: 'r', traceIds: ['0123456789abcdef'.repeat(2)], misses: 9n, timeMs: 0n } });
  await until('telemetry is kept', async () => (await device('d1')).telemetry, 5000, 5);
  const { devices } = await call(coordinator, 'listDevices', { selector: { matchLabels: { site: 'lab' }, expression: '' }, pageSize: 0, pageToken: '' });
  expect(devices).toMatchObject([{ id: 'd1', online: true, bootId: 'boot-d1', telemetry: { decodeTokens: 64n }, traceUrl: `http://127.0.0.1:16686/trace/${'0123456789abcdef'.repeat(2)}` }]);
  expect((await call(coordinator, 'listDevices', { selector: undefined, pageSize: 0, pageToken: '' })).devices.map((found) => found.id)).toEqual(['d1', 'd2']);
});

test('a trace id that is none makes no link', async () => {
  const agent = await join({ id: 'd' });
  agent.telemetry({ lastTrace: { requestId: 'r', traceIds: ['../../evil'], misses: 0n, timeMs: 0n } });
  await until('telemetry is kept', async () => (await device('d')).telemetry, 5000, 5);
  expect((await device('d')).traceUrl).toBe('');
});

describe('measuring on a device', () => {
  const request: Measure = { ...Measure.decode(new Uint8Array()), prompts: ['Once'], tokensPerPrompt: 8 };
  const measure = (deviceId: string, change: Partial<Measure> = {}) => coordinator.operator.measureDevice({ deviceId, measure: { ...request, ...change } });

  async function outcome(stream: ClientReadableStream<MeasureDeviceResponse>): Promise<MeasureDeviceResponse['state'][]> {
    const states = [];
    for await (const { state } of stream as AsyncIterable<MeasureDeviceResponse>) states.push(state);
    return states;
  }

  test('streams progress and ends with the result', async () => {
    await join({ id: 'd', onTask: (task, agent) => {
      expect(task.kind).toEqual({ $case: 'measure', value: request });
      agent.send({ $case: 'taskUpdate', value: { taskId: 'another', state: { $case: 'failed', value: { reason: 'not ours' } } } });
      agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'progress', value: { fraction: 0.5, what: 'generating' } } } });
      setTimeout(() => agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'measured', value: { ...MeasureResult.decode(new Uint8Array()), misses: 7n, crossEntropy: 3.5 } } } }), 50);
    } });
    const states = await outcome(measure('d'));
    expect(states[0]).toEqual({ $case: 'progress', value: { fraction: 0.5, what: 'generating' } });
    expect(states.at(-1)).toMatchObject({ $case: 'result', value: { misses: 7n, crossEntropy: 3.5 } });
  });

  test('a device that gives up says why', async () => {
    await join({ id: 'd', onTask: (task, agent) => agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'failed', value: { reason: 'no model is loaded' } } } }) });
    await expect(outcome(measure('d'))).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringContaining('no model is loaded') });
  });

  test('is UNAVAILABLE for a device that is offline or leaves', async () => {
    const agent = await join({ id: 'd', onTask: (_, leaver) => leaver.kill() });
    await expect(outcome(measure('d'))).rejects.toMatchObject({ code: status.UNAVAILABLE, details: expect.stringContaining('device d has left') });
    expect(agent.welcome).not.toBeNull();
    await until('it is offline', async () => !(await device('d')).online, 5000, 5);
    await expect(outcome(measure('d'))).rejects.toMatchObject({ code: status.UNAVAILABLE, details: 'device d is offline' });
    await expect(outcome(measure('nobody'))).rejects.toMatchObject({ code: status.NOT_FOUND });
  });

  test('a caller who goes away cancels it on the device', async () => {
    const started: string[] = [];
    const agent = await join({ id: 'd', onTask: (task) => started.push(task.taskId) });
    const stream = measure('d');
    stream.on('error', () => {});
    await until('it runs', () => started.length, 5000, 5);
    stream.cancel();
    await until('it is cancelled', () => agent.cancelled.length, 5000, 5);
    expect(agent.cancelled).toEqual(started);
  });

  test('names the coordinator that has the device', async () => {
    const second = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b' });
    agents.push(await TestAgent.join(second.gateway, { id: 'd' }));
    await expect(outcome(measure('d'))).rejects.toMatchObject({ code: status.UNAVAILABLE, details: 'device d is connected to coordinator coordinator-b; ask that one' });
    for (const agent of agents.splice(0)) agent.kill();
    await second.close();
  });

  test.each<[Partial<Measure>, RegExp]>([
    [{ prompts: [] }, /neither prompts nor text/], [{ prompts: [''] }, /prompts\[0\]/], [{ tokensPerPrompt: 0 }, /tokens_per_prompt: 0/],
    [{ text: 'a', textTokens: 300, context: 256 }, /text_tokens: 300 is not a multiple/], [{ text: 'a', textTokens: 256, context: 0 }, /context: 0/],
  ])('refuses %j', async (change, message) => {
    await expect(outcome(measure('d', change))).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(message) });
  });
});

describe('the learner', () => {
  test('sees devices with a model, stores a surface, and rolls out what it proposes', async () => {
    const agent = await join({ id: 'd1' });
    await join({ id: 'd2', modelHash: '' });
    expect((await call(coordinator, 'listLearnable', {})).devices.map((found) => found.id)).toEqual(['d1']);
    const surface: QualitySurface = { ...QualitySurface.decode(new Uint8Array()), modelHash: MODEL_HASH, textHash: 'ef'.repeat(32), points: [{ ...SurfacePoint.decode(new Uint8Array()), lambda: 0.3 }] };
    await expect(call(coordinator, 'getSurface', surface)).rejects.toMatchObject({ code: status.NOT_FOUND });
    await call(coordinator, 'putSurface', { surface });
    expect((await call(coordinator, 'getSurface', surface)).surface).toEqual(surface);
    await call(coordinator, 'reportActivity', { activity: 'measuring' });
    const rolloutId = await propose({ deviceId: 'd1', lambda: 0.3, topJ: 1, capacities: [8, 8, 8] }, { deviceId: 'd2', proposed: false, modelHash: '', reason: 'no model is loaded' });
    const rollout = await until('it is done', async () => {
      const { rollout: found } = await call(coordinator, 'getRollout', { rolloutId });
      return found?.state === State.STATE_DONE ? found : null;
    }, 5000, 5);
    expect(rollout).toMatchObject({ origin: 'learner: best within 1%', devices: [{ deviceId: 'd1', state: Row.STATE_APPLIED }] });
    expect(agent.specs.at(-1)).toMatchObject({ lambda: 0.3, topJ: 1, cache: { $case: 'capacities', value: { experts: [8, 8, 8] } }, modelHash: MODEL_HASH });
    expect(await propose({ deviceId: 'd1', lambda: 0.3, topJ: 1, capacities: [8, 8, 8] })).toBe('');
    expect(await call(coordinator, 'getLearner', {})).toMatchObject({ activity: 'measuring', proposals: [{ deviceId: 'd1', lambda: 0.3 }, { deviceId: 'd2', proposed: false }] });
  });

  test('a proposal for a model the device no longer runs is kept but not rolled out', async () => {
    const agent = await join({ id: 'd' });
    expect(await propose({ deviceId: 'd', lambda: 0.3, modelHash: 'cd'.repeat(32) })).toBe('');
    expect(agent.desired).toEqual([]);
  });

  test.each<[Partial<Proposal>, status, RegExp]>([
    [{ deviceId: 'd', lambda: 2 }, status.INVALID_ARGUMENT, /lambda: 2/], [{ deviceId: 'd', modelHash: 'XYZ' }, status.INVALID_ARGUMENT, /model_hash: "XYZ"/],
    [{ deviceId: 'd', capacities: [8, 0] }, status.INVALID_ARGUMENT, /capacities\[1\]: 0/], [{ deviceId: 'd', predictedMissRate: NaN }, status.INVALID_ARGUMENT, /predictedMissRate: NaN/],
    [{ deviceId: 'nobody' }, status.NOT_FOUND, /nobody/],
  ])('%j is refused', async (proposal, code, message) => {
    await join({ id: 'd' });
    await expect(propose(proposal)).rejects.toMatchObject({ code, details: expect.stringMatching(message) });
  });

  test('a job is queued when an operator asks, one at a time', async () => {
    const { jobId } = await call(coordinator, 'runLearner', {});
    expect(jobId).not.toBe('');
    expect((await call(coordinator, 'runLearner', {})).jobId).toBe(jobId);
  });
});

test('answers health checks, for each service and as a whole', async () => {
  const file = joinPath(dirname(require.resolve('grpc-health-check/package.json')), 'proto/health/v1/health.proto');
  const definition = loadPackageDefinition(loadSync(file, { keepCase: true, enums: String })) as unknown as { grpc: { health: { v1: { Health: new (address: string, creds: unknown) => HealthClient } } } };
  interface HealthClient { check(request: { service: string }, callback: (error: unknown, response: { status: string }) => void): void; close(): void }
  const client = new definition.grpc.health.v1.Health(coordinator.addresses().operatorAddress, credentials.createInsecure());
  const check = (service: string) => new Promise((resolve, reject) => client.check({ service }, (error, response) => (error ? reject(error) : resolve(response))));
  for (const service of ['', 'moefleet.v1.OperatorService', 'moefleet.v1.LearnerService']) {
    expect(await check(service)).toMatchObject({ status: 'SERVING' });
  }
  await expect(check('no.such.Service')).rejects.toMatchObject({ code: status.NOT_FOUND });
  client.close();
});

test('answers reflection, so that tools need no proto files', async () => {
  const file = joinPath(dirname(require.resolve('@grpc/reflection/package.json')), 'build/proto/grpc/reflection/v1/reflection.proto');
  interface Answer { list_services_response?: { service: { name: string }[] }; file_descriptor_response?: { file_descriptor_proto: Buffer[] } }
  interface Reflection { ServerReflectionInfo(): { write(request: object): void; end(): void; once(event: 'data' | 'end', listener: (answer: Answer) => void): void }; close(): void }
  const definition = loadPackageDefinition(loadSync(file, { keepCase: true })) as unknown as { grpc: { reflection: { v1: { ServerReflection: new (address: string, creds: unknown) => Reflection } } } };
  const client = new definition.grpc.reflection.v1.ServerReflection(coordinator.addresses().operatorAddress, credentials.createInsecure());
  const stream = client.ServerReflectionInfo();
  const ask = (request: object): Promise<Answer> => new Promise((resolve) => { stream.once('data', resolve); stream.write(request); });
  const services = (await ask({ list_services: '*' })).list_services_response!.service.map((service) => service.name);
  expect(services.sort()).toEqual(['grpc.health.v1.Health', ...['Access', 'ArtifactStore', 'Fleet', 'Identity', 'Inventory', 'Knowledge', 'Learner', 'ModelStore', 'Operator', 'Rollout', 'Window'].map((name) => `moefleet.v1.${name}Service`)]);
  const described = await ask({ file_containing_symbol: 'moefleet.v1.OperatorService' });
  expect(Buffer.concat(described.file_descriptor_response!.file_descriptor_proto).includes('ChangeConfig')).toBe(true);
  const ended = new Promise((resolve) => stream.once('end', resolve));
  stream.end();
  await ended;
  client.close();
});
