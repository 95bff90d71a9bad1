import { status } from '@grpc/grpc-js';
import {
  ChangeConfigRequest, MeasureResult, type PlanRolloutResponse, Staging, type StagedRollout, StagedRollout_State as State, type Task,
} from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TestAgent, type TestAgentOptions } from '../testing/test-agent';
import { change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
const agents: TestAgent[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => { coordinator = await startCoordinator(redis.url, { rolloutLockMs: 2000 }); });
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  await coordinator.close();
});

async function join(id: string, options: Partial<TestAgentOptions> = {}, at = coordinator): Promise<TestAgent> {
  const agent = await TestAgent.join(at.gateway, { id, ...options });
  agents.push(agent);
  return agent;
}

type Unary = 'planRollout' | 'startRollout' | 'getStagedRollout' | 'pauseRollout' | 'resumeRollout' | 'rollbackRollout' | 'listRollouts';
function ask<T>(method: Unary, request: object): Promise<T> {
  const client = coordinator.rollouts as unknown as Record<string, (request: object, done: (error: unknown, answer: T) => void) => void>;
  return new Promise((resolve, reject) => client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer))));
}

const all = { kind: { $case: 'all' as const, value: true } };
function lambda(value: number, target: ChangeConfigRequest['target'] = all): ChangeConfigRequest {
  return ChangeConfigRequest.fromPartial({ target, change: { $case: 'setLambda', value: { lambda: value } }, why: 'test' } as object);
}

async function start(request: ChangeConfigRequest, staging: Partial<Staging>): Promise<string> {
  const { rollout } = await ask<{ rollout: StagedRollout }>('startRollout', { change: request, staging: Staging.fromPartial(staging) });
  return rollout.id;
}

async function show(rolloutId: string): Promise<StagedRollout> {
  return (await ask<{ rollout: StagedRollout }>('getStagedRollout', { rolloutId })).rollout;
}

function reaches(id: string, state: State): Promise<StagedRollout> {
  return until(`${id} is ${State[state]}`, async () => {
    const rollout = await show(id);
    if (rollout.state !== state && [State.STATE_DONE, State.STATE_ROLLED_BACK, State.STATE_SUPERSEDED].includes(rollout.state)) throw new Error(`it has ended as ${State[rollout.state]}: ${rollout.reason}`);
    return rollout.state === state ? rollout : null;
  }, 20_000, 25);
}

const lambdaOf = (agent: TestAgent) => agent.specs.at(-1)?.lambda;
const rows = (rollout: StagedRollout) => Object.fromEntries(rollout.devices.map((device) => [device.deviceId, device.state]));

/** Answers every measurement: λ 0 costs 3 nats a token, the spec `loss` more on each window. */
function scores(loss: () => number[]) {
  return (task: Task, agent: TestAgent) => {
    const windows = loss();
    agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'measured', value: MeasureResult.fromPartial({
      generation: agent.reported.appliedGeneration, windowCrossEntropy: windows.map((each) => 3 + each), windowCrossEntropyLambdaZero: windows.map(() => 3), textTokens: 2048, textMissRate: 0.1,
    }) } } });
  };
}
const steady = (loss: number) => scores(() => [1, 2, 3, 4, 5, 6, 7, 8].map((at) => loss + at * 1e-5));

test('goes through its stages, counts for devices of stages that have begun alone, and is promoted at its end', async () => {
  const fleet = await Promise.all(['a', 'b', 'c', 'd'].map((id) => join(id)));
  await change(coordinator.operator, { ...lambda(0.1), timeoutMs: 5000 });
  const id = await start(lambda(0.3), { stages: '1,50%,100%', soakMs: 400 });
  await until('one has it', () => fleet.filter((agent) => lambdaOf(agent) === 0.3).length === 1, 10_000, 5);
  const late = await join('late');
  await until('the newcomer has what stands', () => lambdaOf(late) === 0.1, 5000, 5);
  const done = await reaches(id, State.STATE_DONE);
  expect(done.stages.map((stage) => [stage.asked, stage.devices])).toEqual([['1', 1], ['50%', 2], ['100%', 4]]);
  expect(new Set(Object.values(rows(done)))).toEqual(new Set(['applied']));
  await until('the newcomer has it too', () => lambdaOf(late) === 0.3, 5000, 5);
  expect((await coordinator.registry.pins.shared()).fleet.lambda).toMatchObject({ lambda: 0.3, why: 'test' });
  expect((await coordinator.registry.devices.read('a'))!.marks.size).toBe(0);
  for (const agent of fleet) expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.1, 0.3]);
});

test('a plan tells who would change, in the order in which they then do, and changes nothing', async () => {
  const fleet = await Promise.all(['a', 'b', 'c'].map((id) => join(id, { labels: { class: id === 'c' ? 'jetson' : 'phone' } })));
  await change(coordinator.operator, { ...lambda(0.4, { kind: { $case: 'deviceId', value: 'b' } }), timeoutMs: 5000 });
  const request = { change: lambda(0.3), staging: Staging.fromPartial({ stages: '1,100%' }) };
  const plan = await ask<PlanRolloutResponse>('planRollout', request);
  expect(plan.devices.map((device) => device.deviceId).sort()).toEqual(['a', 'b', 'c']);
  expect(plan.devices.find((device) => device.deviceId === 'b')).toMatchObject({ stage: 0, before: 'λ 0.4', after: 'λ 0.4', unchanged: 'the device pin stands' });
  expect(plan.devices[0]).toMatchObject({ stage: 1, online: true, before: 'λ 0 (default)', after: 'λ 0.3' });
  expect(fleet[0]!.desired).toHaveLength(0);
  expect((await ask<{ rollouts: unknown[] }>('listRollouts', {})).rollouts).toEqual([]);
  const done = await reaches(await start(request.change, request.staging), State.STATE_DONE);
  expect(done.devices.map((device) => [device.deviceId, device.stage])).toEqual(plan.devices.map((device) => [device.deviceId, device.stage]));
});

test('a gate that fails takes the change back from every device that has it, and says which, where, and by how much', async () => {
  const fleet = await Promise.all(['a', 'b', 'c'].map((id) => join(id, { onTask: steady(0.3) })));
  await change(coordinator.operator, { ...lambda(0.1), timeoutMs: 5000 });
  const back = await reaches(await start(lambda(1), { stages: '1,100%', gate: 'perplexityLoss<1%' }), State.STATE_ROLLED_BACK);
  const [first, ...others] = back.devices;
  expect(back.reason).toMatch(new RegExp(`stage 1: ${first!.deviceId}: perplexityLoss<1% failed: perplexityLoss 34\\.99.*8 windows.*limit < 1\\.000%`));
  expect(first).toMatchObject({ state: 'reverted', reason: 'runs its last good spec again' });
  expect(others.map((device) => device.state)).toEqual(['waiting', 'waiting']);
  for (const agent of fleet) expect(lambdaOf(agent)).toBe(0.1);
  expect(fleet.map((agent) => agent.specs.length).sort()).toEqual([1, 1, 3]);
  expect((await coordinator.registry.pins.shared())).toMatchObject({ fleet: { lambda: { lambda: 0.1 } }, staged: [] });
});

test('a gate that holds lets it pass, over two coordinators, whoever drives it', async () => {
  const other = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b' });
  try {
    await join('a', { onTask: steady(0.001) });
    await join('b', { onTask: steady(0.002) }, other);
    const done = await reaches(await start(lambda(0.2), { stages: '1,100%', gate: 'perplexityLoss<1%,errors==0,missRate<=baseline' }), State.STATE_DONE);
    expect(done.devices.map((device) => device.findings.map((finding) => finding.verdict))).toEqual([['pass', 'pass', 'pass'], ['pass', 'pass', 'pass']]);
  } finally {
    for (const agent of agents.splice(0)) agent.kill();
    await other.close();
  }
});

test('what is unclear is measured again, then held until an operator resumes it; it never passes by itself', async () => {
  let noise = [0, 0.03, 0, 0.02, 0, 0.01, 0, 0];
  let asked = 0;
  await join('a', { onTask: scores(() => { asked += 1; return noise; }) });
  const id = await start(lambda(0.2), { gate: 'perplexityLoss<1%' });
  const held = await reaches(id, State.STATE_INCONCLUSIVE);
  expect(asked).toBe(3);
  expect(held.reason).toMatch(/a: perplexityLoss<1% is unclear/);
  noise = noise.map(() => 0.001);
  await ask('resumeRollout', { rolloutId: id, why: '' });
  await reaches(id, State.STATE_DONE);
});

test('a device that cannot measure makes it inconclusive', async () => {
  await join('a', { onTask: (task, agent) => agent.send({ $case: 'taskUpdate', value: { taskId: task.taskId, state: { $case: 'failed', value: { reason: 'no engine' } } } }) });
  const held = await reaches(await start(lambda(0.2), { gate: 'perplexityLoss<1%' }), State.STATE_INCONCLUSIVE);
  expect(held.devices[0]!.reason).toMatch(/no engine/);
});

test('counts failed requests since the change', async () => {
  const agent = await join('a');
  const told = (requestsFailed: bigint) => agent.telemetry({ requestsFailed });
  told(5n);
  await until('the frame is kept', async () => (await coordinator.registry.devices.read('a'))?.telemetry?.requestsFailed === 5n, 5000, 5);
  const id = await start(lambda(0.2), { soakMs: 20_000, gate: 'errors==0' });
  await until('it has it', () => lambdaOf(agent) === 0.2, 10_000, 5);
  told(6n);
  expect((await reaches(id, State.STATE_ROLLED_BACK)).reason).toMatch(/errors==0 failed: errors 1/);
});

test('is paused, resumed and rolled back by an operator, also when it is done', async () => {
  const fleet = await Promise.all(['a', 'b'].map((id) => join(id)));
  await change(coordinator.operator, { ...lambda(0.1), timeoutMs: 5000 });
  const id = await start(lambda(0.3), { stages: '1,100%', soakMs: 1500 });
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.3), 10_000, 5);
  await ask('pauseRollout', { rolloutId: id, why: 'lunch' });
  expect(await show(id)).toMatchObject({ state: State.STATE_PAUSED, reason: 'lunch' });
  await expect(ask('pauseRollout', { rolloutId: id, why: '' })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION });
  await ask('resumeRollout', { rolloutId: id, why: '' });
  await reaches(id, State.STATE_DONE);
  await ask('rollbackRollout', { rolloutId: id, why: 'regret' });
  await until('it is rolled back', async () => (await show(id)).state === State.STATE_ROLLED_BACK, 10_000, 25);
  for (const agent of fleet) expect(lambdaOf(agent)).toBe(0.1);
  expect((await coordinator.registry.pins.shared()).fleet.lambda!.lambda).toBe(0.1);
  await expect(ask('rollbackRollout', { rolloutId: id, why: '' })).rejects.toMatchObject({ details: expect.stringMatching(/rolled back and cannot be rolled back/) as string });
  await expect(ask('pauseRollout', { rolloutId: 'ro-none', why: '' })).rejects.toMatchObject({ code: status.NOT_FOUND });
});

test('a rollback of a finished hand-back to the learner brings the pin back, unless another was set since', async () => {
  const fleet = await Promise.all(['a', 'b'].map((id) => join(id)));
  const auto = ChangeConfigRequest.fromPartial({ target: all, change: { $case: 'clearLambda', value: {} }, why: 'test' } as object);
  await change(coordinator.operator, { ...lambda(0.2), timeoutMs: 5000 });
  const id = await start(auto, { stages: '1,100%' });
  await reaches(id, State.STATE_DONE);
  expect((await coordinator.registry.pins.shared()).fleet.lambda).toBeUndefined();
  for (const agent of fleet) expect(lambdaOf(agent)).toBeUndefined();
  await ask('rollbackRollout', { rolloutId: id, why: 'regret' });
  await until('it is rolled back', async () => (await show(id)).state === State.STATE_ROLLED_BACK, 10_000, 25);
  expect((await coordinator.registry.pins.shared()).fleet.lambda).toMatchObject({ lambda: 0.2, why: 'test' });
  for (const agent of fleet) expect(lambdaOf(agent)).toBe(0.2);

  const again = await start(auto, {});
  await reaches(again, State.STATE_DONE);
  await change(coordinator.operator, { ...lambda(0.5), timeoutMs: 5000 });
  await ask('rollbackRollout', { rolloutId: again, why: 'regret' });
  await until('it is rolled back', async () => (await show(again)).state === State.STATE_ROLLED_BACK, 10_000, 25);
  for (const agent of fleet) expect(lambdaOf(agent)).toBe(0.5);
});

test('one that is taken back before it is done leaves the pin where it was', async () => {
  const agent = await join('a');
  const here = { kind: { $case: 'deviceId' as const, value: 'a' } };
  await change(coordinator.operator, { ...lambda(0.2, here), timeoutMs: 5000 });
  const id = await start(ChangeConfigRequest.fromPartial({ target: here, change: { $case: 'clearLambda', value: {} } } as object), { soakMs: 60_000 });
  await until('it is handed back', () => agent.desired.length === 2 && lambdaOf(agent) === undefined, 10_000, 5);
  await ask('rollbackRollout', { rolloutId: id, why: 'regret' });
  await reaches(id, State.STATE_ROLLED_BACK);
  expect(lambdaOf(agent)).toBe(0.2);
});

test('a newer change of the same field ends it, whether that comes in stages or at once', async () => {
  const fleet = await Promise.all(['a', 'b'].map((id) => join(id)));
  const first = await start(lambda(0.3), { stages: '1,100%', soakMs: 60_000 });
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.3), 10_000, 5);
  const second = await start(lambda(0.4), { stages: '1,100%', soakMs: 60_000 });
  expect((await reaches(first, State.STATE_SUPERSEDED)).reason).toContain(second);
  await until('it has begun', () => fleet.some((agent) => lambdaOf(agent) === 0.4), 10_000, 5);
  await change(coordinator.operator, { ...lambda(0.5), timeoutMs: 5000 });
  await reaches(second, State.STATE_SUPERSEDED);
  await until('all have the newest', () => fleet.every((agent) => lambdaOf(agent) === 0.5), 5000, 5);
});

test('waits for an offline device until the deadline, and the device gets it when it comes back', async () => {
  await join('a');
  const away = await join('b');
  await away.leave();
  const id = await start(lambda(0.3), { deadlineMs: 1500 });
  await until('the other has it', async () => rows(await show(id))['a'] === 'applied', 10_000, 5);
  expect((await show(id)).state).toBe(State.STATE_RUNNING);
  expect(rows(await reaches(id, State.STATE_DONE))).toEqual({ a: 'applied', b: 'offline' });
  const back = await join('b');
  await until('it has it', () => lambdaOf(back) === 0.3, 5000, 5);
});

test('more failures than are allowed take it back', async () => {
  const fleet = await Promise.all(['a', 'b', 'c'].map((id) => join(id, { onDesired: id === 'b' ? 'refuse' : 'apply' })));
  const back = await reaches(await start(lambda(0.3), { stages: '100%' }), State.STATE_ROLLED_BACK);
  expect(back.reason).toMatch(/1 devices failed, 0 may \(b: capacity does not fit\)/);
  for (const agent of fleet.filter(({ options }) => options.id !== 'b')) expect(lambdaOf(agent)).toBeUndefined();
});

test('keeps no more devices on the way than it may', async () => {
  const fleet = await Promise.all(['a', 'b', 'c', 'd'].map((id) => join(id, { onDesired: 'start only' })));
  const id = await start(lambda(0.3), { stages: '100%', maxUnavailable: 2 });
  await until('two are at it', () => fleet.filter((agent) => agent.desired.length > 0).length === 2, 10_000, 5);
  await until('steps have gone by', async () => (await show(id)).counts['pending'] === 2, 5000, 5);
  for (let done = 0; done < 4; done += 1) {
    const busy = await until('one is at it', () => fleet.find((agent) => agent.desired.length > 0 && agent.reported.appliedGeneration === 0n), 10_000, 5);
    expect(fleet.filter((agent) => agent.desired.length > 0 && agent.reported.appliedGeneration === 0n).length).toBeLessThanOrEqual(2);
    busy.apply(busy.desired[0]!);
  }
  await reaches(id, State.STATE_DONE);
});

test('the kill switch halts it where it stands', async () => {
  const fleet = await Promise.all(['a', 'b'].map((id) => join(id)));
  const id = await start(lambda(0.3), { stages: '1,100%', soakMs: 60_000 });
  await until('one has it', () => fleet.some((agent) => lambdaOf(agent) === 0.3), 10_000, 5);
  const killing = coordinator.rollouts.killLambda({ why: 'smoke', timeoutMs: 5000 });
  await new Promise((resolve, reject) => killing.on('data', () => {}).on('end', resolve).on('error', reject));
  expect(await show(id)).toMatchObject({ state: State.STATE_PAUSED, reason: 'the kill switch was thrown: smoke' });
  await until('all are at 0', () => fleet.every((agent) => (lambdaOf(agent) ?? 0) === 0), 5000, 5);
  await expect(ask('resumeRollout', { rolloutId: id, why: '' })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringContaining('smoke') as string });
  await expect(start(lambda(0.2), {})).rejects.toMatchObject({ code: status.FAILED_PRECONDITION });
});

test.each([
  ['stages that do not end with all', { stages: '1,5%' }, /staging\.stages: "1,5%" is not a list that ends with 100%/],
  ['stages that shrink', { stages: '2,1,100%' }, /each stage holds all before it/],
  ['a stage that is none', { stages: 'some' }, /staging\.stages: "some"/],
  ['a metric that is none', { gate: 'beauty>1' }, /staging\.gate: "beauty>1".*perplexityLoss/],
  ['a baseline of errors', { gate: 'errors<=baseline' }, /staging\.gate/],
])('refuses %s', async (_, staging, message) => {
  await Promise.all(['a', 'b', 'c'].map((id) => join(id)));
  await expect(start(lambda(0.2), staging)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(message) as string });
});

