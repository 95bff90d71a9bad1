import { createHash } from 'node:crypto';
import { ChangeConfigRequest, type ConnectResponse, DeviceSpec, SpecState, type StagedRollout, StagedRollout_State as State, Staging } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

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

const REASON = 'agent release 0.3.0: it ended before it was healthy; 0.1.0 is back';

/** A device whose agent stands every release but 0.3.0, as a real one answers. */
async function device(id: string): Promise<TestAgent> {
  const agent = await TestAgent.join(coordinator.gateway, { id, onDesired: 'ignore' });
  agents.push(agent);
  agent.stream.on('data', ({ body }: ConnectResponse) => {
    if (body?.$case !== 'desired') return;
    const { generation, spec } = body.value;
    agent.report({ state: SpecState.SPEC_STATE_APPLYING, generation, hash: createHash('sha256').update(spec).digest() });
    if (DeviceSpec.decode(spec).agent?.version === '0.3.0') agent.report({ state: SpecState.SPEC_STATE_FAILED, generation, hash: createHash('sha256').update(spec).digest(), reason: REASON });
    else agent.apply(body.value);
  });
  return agent;
}

function call<T>(method: 'startRollout' | 'getStagedRollout', request: object): Promise<T> {
  const client = coordinator.rollouts as unknown as Record<string, (request: object, done: (error: unknown, answer: T) => void) => void>;
  return new Promise((resolve, reject) => client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer))));
}

async function upgrade(version: string, stages: string): Promise<StagedRollout> {
  const change = ChangeConfigRequest.fromPartial({ target: { kind: { $case: 'all', value: true } }, change: { $case: 'setAgent', value: { version, allowDowngrade: false } } });
  const { rollout } = await call<{ rollout: StagedRollout }>('startRollout', { change, staging: Staging.fromPartial({ stages }) });
  return until(`the rollout of ${version} has ended`, async () => {
    const now = (await call<{ rollout: StagedRollout }>('getStagedRollout', { rolloutId: rollout.id })).rollout;
    return [State.STATE_DONE, State.STATE_ROLLED_BACK].includes(now.state) ? now : null;
  }, 30_000, 50);
}

test('a release that fails on its first device of fifty stops there, and no other device has ever been asked to run it', async () => {
  const fleet = await Promise.all(Array.from({ length: 50 }, (_, at) => device(`board-${at}`)));
  const back = await upgrade('0.3.0', '1,10%,50%,100%');
  expect(back.state).toBe(State.STATE_ROLLED_BACK);
  expect(back.reason).toContain(REASON);
  expect(fleet.filter((agent) => agent.specs.some((spec) => spec.agent?.version === '0.3.0'))).toHaveLength(1);
  expect(back.devices.filter(({ state }) => state === 'waiting')).toHaveLength(49);
  expect(fleet.every((agent) => agent.specs.at(-1)?.agent === undefined)).toBe(true);
});

test('a good release reaches all in its stages, and a device that joins afterwards', async () => {
  const fleet = await Promise.all(['a', 'b', 'c'].map(device));
  expect((await upgrade('0.2.0', '1,100%')).state).toBe(State.STATE_DONE);
  expect(fleet.map((agent) => agent.specs.at(-1)?.agent)).toEqual(fleet.map(() => ({ version: '0.2.0', allowDowngrade: false })));
  const late = await device('late');
  await until('the newcomer is asked to run it', () => late.specs.at(-1)?.agent?.version === '0.2.0', 10_000, 20);
});

test('a version that is none is refused by name', async () => {
  await device('a');
  await expect(upgrade('latest', '1,100%')).rejects.toThrow('set_agent.version: "latest" is not a version such as 0.2.0');
});
