/** The learner's proposals as staged rollouts, over real gRPC and Redis. */
import { status } from '@grpc/grpc-js';
import { ChangeConfigRequest, MeasureResult, Proposal, Routing, Staging, type StagedRollout, StagedRollout_State as State, type Task } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { MODEL_HASH, type TestAgent } from '../testing/test-agent';
import { specInputs } from './desired-writer';
import { effectiveSpec } from './effective-spec';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
let clockMs: number;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(() => { clockMs = Date.now(); });
afterEach(() => coordinator.close());

async function begin(env: Record<string, string> = {}): Promise<void> {
  coordinator = await startCoordinator(redis.url, { rolloutLockMs: 2000, now: () => clockMs, env });
}

/** What λ costs, as every device of the fleet measures it: nats per token. */
const COST: Record<string, number> = { 0.1: 0.001, 0.2: 0.002, 0.3: 0.003, 1: 0.3 };

const join = (id: string) => coordinator.join({ id, onTask: (task: Task, agent: TestAgent) => {
  const loss = COST[String(lambdaOf(agent) ?? 0)] ?? 0;
  const windows = [1, 2, 3, 4, 5, 6, 7, 8].map((at) => loss + at * 1e-5);
  agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'measured', value: MeasureResult.fromPartial({
    generation: agent.reported.appliedGeneration, windowCrossEntropy: windows.map((each) => 3 + each), windowCrossEntropyLambdaZero: windows.map(() => 3), textTokens: 2048,
  }) } } });
} });
const lambdaOf = (agent: TestAgent) => agent.specs.at(-1)?.lambda;

async function propose(values: Record<string, number>): Promise<string> {
  const proposals = Object.entries(values).map(([deviceId, lambda]) => ({ ...Proposal.decode(new Uint8Array()), deviceId, lambda, topJ: 1, capacities: [8, 8, 8], modelHash: MODEL_HASH, proposed: true, reason: 'best within 1%' }));
  return (await call(coordinator, 'propose', { proposals })).rolloutId;
}

/** Another routing on one device. */
async function proposeRouting(fields: Partial<Proposal>): Promise<string> {
  return (await call(coordinator, 'propose', { proposals: [Proposal.fromPartial({ deviceId: 'a', topJ: 1, capacities: [8, 8, 8], modelHash: MODEL_HASH, proposed: true, reason: 'best within 1%', ...fields })] })).rolloutId;
}

type Unary = 'startRollout' | 'pauseRollout' | 'getStagedRollout' | 'resumeRollout' | 'rollbackRollout' | 'listRollouts';
function ask<T>(method: Unary, request: object): Promise<T> {
  const client = coordinator.rollouts as unknown as Record<string, (request: object, done: (error: unknown, answer: T) => void) => void>;
  return new Promise((resolve, reject) => client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer))));
}

const show = async (rolloutId: string) => (await ask<{ rollout: StagedRollout }>('getStagedRollout', { rolloutId })).rollout;
const ends = (id: string, state: State) => until(`${id} is ${State[state]}`, async () => { const found = await show(id); return found.state === state ? found : null; }, 20_000, 20);
const learnedOf = async (id: string) => (await coordinator.registry.devices.read(id))!.learned?.lambda;
const rows = ({ devices }: StagedRollout) => Object.fromEntries(devices.map((device) => [device.deviceId, device.state]));

test('go out in stages, are measured, and are the learner\'s values then; what it repeats is no news', async () => {
  await begin({ MOEFLEET_LEARNER_STAGES: '1,100%', MOEFLEET_LEARNER_SOAK: '0' });
  const fleet = await Promise.all(['a', 'b', 'c'].map(join));
  const id = await propose({ a: 0.1, b: 0.2, c: 0.3 });
  expect(await propose({ a: 0.1, b: 0.2, c: 0.3 })).toBe('');
  const done = await ends(id, State.STATE_DONE);
  expect(done).toMatchObject({ who: 'learner', layer: 'learner', why: 'best within 1%', what: 'learner\'s values on 3 devices', gates: ['perplexityLoss<2%', 'errors==0'] });
  expect(done.stages.map(({ devices }) => devices)).toEqual([1, 3]);
  expect(done.devices.map((device) => device.findings.map(({ verdict }) => verdict))).toEqual([['pass', 'pass'], ['pass', 'pass'], ['pass', 'pass']]);
  expect(fleet.map(lambdaOf)).toEqual([0.1, 0.2, 0.3]);
  expect(fleet.map(({ specs }) => specs.length)).toEqual([1, 1, 1]);
  expect(await Promise.all(['a', 'b', 'c'].map(learnedOf))).toEqual([0.1, 0.2, 0.3]);
  expect((await coordinator.registry.devices.read('a'))!.marks.size).toBe(0);
  expect(await propose({ a: 0.1, b: 0.2, c: 0.3 })).toBe('');
  expect((await ask<{ rollouts: StagedRollout[] }>('listRollouts', {})).rollouts.map(({ layer }) => layer)).toEqual(['learner']);
});

test('another routing goes out as λ does, a change of its strength is news, and one that makes no sense is refused', async () => {
  await begin();
  const agent = await join('a');
  await ends(await propose({ a: 0.1 }), State.STATE_DONE);
  const ranked = { routing: Routing.ROUTING_MAX_RANK, maxRank: 8 };
  await ends(await proposeRouting(ranked), State.STATE_DONE);
  expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_MAX_RANK, lambda: 0, topJ: 1, maxRank: 8, modelHash: MODEL_HASH });
  expect(await proposeRouting(ranked)).toBe('');
  await ends(await proposeRouting({ routing: Routing.ROUTING_MAX_RANK, maxRank: 12 }), State.STATE_DONE);
  expect(agent.specs.at(-1)).toMatchObject({ maxRank: 12 });
  await ends(await propose({ a: 0.1 }), State.STATE_DONE);
  expect(agent.specs.at(-1)).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.1, maxRank: undefined });
  for (const [fields, says] of [
    [{ routing: Routing.ROUTING_MAX_RANK }, /max_rank: 0 is not/], [{ routing: Routing.ROUTING_MAX_RANK, maxRank: 8, lambda: 0.1 }, /lambda: 0.1 is not 0 beside/],
    [{ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD }, /mass_threshold: NaN/], [{ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 1.2 }, /mass_threshold: 1.2/],
    [{ routing: Routing.ROUTING_PRUNED, topJ: 0 }, /top_j: 0/], [{ routing: Routing.ROUTING_ORIGINAL }, /routing: 1 is not/],
  ] as [Partial<Proposal>, RegExp][]) await expect(proposeRouting(fields)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(says) as string });
});

test('a bad one is taken back from every device by itself, and not tried again within a day', async () => {
  await begin({ MOEFLEET_LEARNER_STAGES: '1,100%', MOEFLEET_LEARNER_SOAK: '0' });
  const fleet = await Promise.all(['a', 'b'].map(join));
  await ends(await propose({ a: 0.1, b: 0.1 }), State.STATE_DONE);
  const back = await ends(await propose({ a: 1, b: 1 }), State.STATE_ROLLED_BACK);
  expect(back.reason).toMatch(/stage 1: [ab]: perplexityLoss<2% failed: perplexityLoss 3[45]\./);
  expect(Object.values(rows(back)).sort()).toEqual(['reverted', 'waiting']);
  expect(fleet.map(lambdaOf)).toEqual([0.1, 0.1]);
  expect(await learnedOf('a')).toBe(0.1);
  expect(await propose({ a: 1, b: 1 })).toBe('');
  expect((await call(coordinator, 'getLearner', {})).proposals).toMatchObject([{ proposed: false, reason: expect.stringMatching(/λ 1 topJ 1 was tried and taken back at .* failed.*not tried again within a day/) as string }, { proposed: false }]);
  await ends(await propose({ a: 0.2, b: 1 }), State.STATE_DONE);
  expect(fleet.map(lambdaOf)).toEqual([0.2, 0.1]);
  clockMs += 24 * 3_600_000 + 60_000;
  await ends(await propose({ a: 0.2, b: 1 }), State.STATE_ROLLED_BACK);
});

test('a newer one takes its devices alone: the others of the rollout keep what they have, never a moment without it, and pass without them', async () => {
  await begin({ MOEFLEET_LEARNER_SOAK: '3s' });
  const [a, b, c] = await Promise.all(['a', 'b', 'c'].map(join)) as [TestAgent, TestAgent, TestAgent];
  const first = await propose({ a: 0.1, b: 0.1 });
  await until('both have it', () => lambdaOf(a) === 0.1 && lambdaOf(b) === 0.1, 10_000, 10);
  const other = await propose({ a: 0.1, b: 0.1, c: 0.3 });
  const second = await propose({ a: 0.1, b: 0.2, c: 0.3 });
  expect((await show(other)).devices.map(({ deviceId }) => deviceId)).toEqual(['c']);
  expect((await show(second)).devices.map(({ deviceId }) => deviceId)).toEqual(['b']);
  expect(rows(await ends(first, State.STATE_DONE))).toEqual({ a: 'applied', b: 'superseded' });
  expect(rows(await ends(second, State.STATE_DONE))).toEqual({ b: 'applied' });
  await ends(other, State.STATE_DONE);
  expect([a, b, c].map(lambdaOf)).toEqual([0.1, 0.2, 0.3]);
  expect(a.specs.map(({ lambda }) => lambda)).toEqual([0.1]);
  expect(await Promise.all(['a', 'b', 'c'].map(learnedOf))).toEqual([0.1, 0.2, 0.3]);
  await ask('rollbackRollout', { rolloutId: first, why: 'regret' });
  await ends(first, State.STATE_ROLLED_BACK);
  expect([a, b, c].map(lambdaOf)).toEqual([undefined, 0.2, 0.3]);
  expect(await propose({ b: 0.1 })).not.toBe('');
});

test('one that all devices were taken from is superseded, also while it is paused', async () => {
  await begin({ MOEFLEET_LEARNER_STAGES: '1,100%', MOEFLEET_LEARNER_SOAK: '1h' });
  const fleet = await Promise.all(['a', 'b'].map(join));
  const first = await propose({ a: 0.1, b: 0.1 });
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.1), 10_000, 10);
  await ask('pauseRollout', { rolloutId: first, why: 'to look' });
  const taken = lambdaOf(fleet[0]!) === 0.1 ? 'a' : 'b';
  const second = await propose({ [taken]: 0.2 });
  await until('its mark is gone', async () => !(await coordinator.registry.devices.read(taken))!.marks.has(first), 20_000, 20);
  expect(await show(first)).toMatchObject({ state: State.STATE_PAUSED, reason: 'to look' });
  await propose({ a: 0.3, b: 0.3 });
  expect((await ends(first, State.STATE_SUPERSEDED)).reason).toBe('superseded by a newer proposal of the learner\'s');
  await ends(second, State.STATE_SUPERSEDED);
  await until('the newest has begun', () => fleet.some((agent) => lambdaOf(agent) === 0.3), 10_000, 10);
  expect(await learnedOf('a')).toBeUndefined();
});

test('a change of an operator\'s takes its device out of it as well', async () => {
  await begin({ MOEFLEET_LEARNER_SOAK: '3s' });
  const fleet = await Promise.all(['a', 'b'].map(join));
  const first = await propose({ a: 0.1, b: 0.1 });
  await until('both have it', () => fleet.every((agent) => lambdaOf(agent) === 0.1), 10_000, 10);
  await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.3, topJ: undefined } }, target: { kind: { $case: 'deviceId', value: 'a' } } });
  expect(rows(await ends(first, State.STATE_DONE))).toEqual({ a: 'superseded', b: 'applied' });
  expect(fleet.map(lambdaOf)).toEqual([0.3, 0.1]);
  expect(fleet[1]!.specs).toHaveLength(1);
});

test('a step that was overtaken cannot put a mark back for good: the newer one counts', async () => {
  await begin({ MOEFLEET_LEARNER_SOAK: '1h' });
  const agent = await join('a');
  await join('b');
  const first = await propose({ a: 0.1, b: 0.1 });
  await until('it has it', () => lambdaOf(agent) === 0.1, 10_000, 10);
  const { proposal } = (await coordinator.registry.stagedRollouts.rows(first))[0]!;
  await propose({ a: 0.2 });
  await until('it has the newer', () => lambdaOf(agent) === 0.2, 10_000, 10);
  await coordinator.registry.pins.mark('a', first, Proposal.decode(Buffer.from(proposal!, 'base64')));
  const device = (await coordinator.registry.devices.read('a'))!;
  expect(effectiveSpec(specInputs(device, await coordinator.registry.pins.shared())).spec.lambda).toBe(0.2);
});

test('the kill switch holds them, and they go on when it is released and an operator says so', async () => {
  await begin({ MOEFLEET_LEARNER_STAGES: '1,100%', MOEFLEET_LEARNER_SOAK: '1s' });
  const fleet = await Promise.all(['a', 'b'].map(join));
  const id = await propose({ a: 0.1, b: 0.1 });
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.1), 10_000, 10);
  const told = (stream: NodeJS.ReadableStream) => new Promise((resolve, reject) => stream.on('data', () => {}).on('end', resolve).on('error', reject));
  await told(coordinator.rollouts.killLambda({ why: 'smoke', timeoutMs: 5000 }));
  expect(await show(id)).toMatchObject({ state: State.STATE_PAUSED, reason: 'the kill switch was thrown: smoke' });
  await expect(propose({ a: 0.2, b: 0.2 })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION });
  await told(coordinator.rollouts.releaseLambda({ why: '', timeoutMs: 5000 }));
  expect(await propose({ a: 0.1, b: 0.1 })).toBe('');
  await ask('resumeRollout', { rolloutId: id, why: '' });
  await ends(id, State.STATE_DONE);
  expect(fleet.map(lambdaOf)).toEqual([0.1, 0.1]);
});

test('an operator takes back what is done: each device has the value of before', async () => {
  await begin({ MOEFLEET_LEARNER_GATE: 'none' });
  const fleet = await Promise.all(['a', 'b'].map(join));
  await ends(await propose({ a: 0.1 }), State.STATE_DONE);
  const id = await propose({ a: 0.2, b: 0.2 });
  await ends(id, State.STATE_DONE);
  await ask('rollbackRollout', { rolloutId: id, why: 'regret' });
  await ends(id, State.STATE_ROLLED_BACK);
  expect(fleet.map(lambdaOf)).toEqual([0.1, undefined]);
  expect(await Promise.all(['a', 'b'].map(learnedOf))).toEqual([0.1, undefined]);
  expect(await propose({ a: 0.2, b: 0.2 })).toBe('');
});

test('never ends a rollout of an operator\'s, and waits for its end; a value under a pin is kept for when that goes', async () => {
  await begin({ MOEFLEET_LEARNER_GATE: 'none' });
  const fleet = await Promise.all(['a', 'b', 'c'].map(join));
  await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.3, topJ: undefined } }, target: { kind: { $case: 'deviceId', value: 'c' } } });
  const request = ChangeConfigRequest.fromPartial({ target: { kind: { $case: 'deviceId', value: 'a' } }, change: { $case: 'setLambda', value: { lambda: 0.3 } } } as object);
  const { rollout: operators } = await ask<{ rollout: StagedRollout }>('startRollout', { change: request, staging: Staging.fromPartial({ soakMs: 3_600_000 }) });
  await until('it has it', () => lambdaOf(fleet[0]!) === 0.3, 10_000, 10);
  const done = await ends(await propose({ a: 0.1, b: 0.1, c: 0.1 }), State.STATE_DONE);
  // The pin hides lambda, not the cache size.
  expect(rows(done)).toEqual({ b: 'applied', c: 'applied' });
  expect(fleet.map(lambdaOf)).toEqual([0.3, 0.1, 0.3]);
  expect((await show(operators.id)).state).toBe(State.STATE_RUNNING);
  expect(await Promise.all(['a', 'b', 'c'].map(learnedOf))).toEqual([undefined, 0.1, 0.1]);
  await change(coordinator.operator, { change: { $case: 'clearLambda', value: {} }, target: { kind: { $case: 'deviceId', value: 'c' } } });
  await until('it has the learner\'s', () => lambdaOf(fleet[2]!) === 0.1, 5000, 10);
});

test('survives a coordinator that dies after each promotion: the next makes it whole, and a rollback undoes all of it', async () => {
  await begin({ MOEFLEET_LEARNER_GATE: 'none' });
  const agent = await join('a');
  const id = await propose({ a: 0.1 });
  await ends(id, State.STATE_DONE);
  const { stagedRollouts, devices, pins } = coordinator.registry;
  // As it is left by one that has died between the promotion and its end.
  const record = (await stagedRollouts.read(id))!;
  await stagedRollouts.write({ ...record, state: 'running', phase: 'judging', promoted: true }, []);
  await pins.unstage(id);
  await ask('rollbackRollout', { rolloutId: id, why: 'regret' });
  await ends(id, State.STATE_ROLLED_BACK);
  expect((await devices.read('a'))!.learned).toBeUndefined();
  await until('it runs without', () => lambdaOf(agent) === undefined, 5000, 10);
});
