/**
 * Masters of a Redis Cluster that die one after the other under a fleet at work: coordinators go on with the replicas,
 * devices keep their streams, the rollout reaches its end, and telemetry is whole.
 */
import { StagedRollout_State as State } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { queuePrefix } from '@moefleet/runtime/redis';
import { type ReplicatedCluster, startReplicatedCluster } from '../../../test/harness/redis-cluster';
import type { TestAgent } from '../testing/test-agent';
import { askRollouts, call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';
import { Keys } from './keys';

const IDS = ['a', 'b', 'c', 'd', 'e', 'f'];
let cluster: ReplicatedCluster;
let coordinators: TestCoordinator[];

beforeAll(async () => {
  cluster = await startReplicatedCluster();
  const env = { MOEFLEET_REDIS_CLUSTER: 'true' };
  const first = await startCoordinator(cluster.url, { id: 'coordinator-a', env, rolloutLockMs: 2000 });
  coordinators = [first, await startCoordinator(cluster.url, { id: 'coordinator-b', env, prefix: first.prefix, rolloutLockMs: 2000 })];
});
afterAll(async () => {
  for (const coordinator of coordinators ?? []) await coordinator.close();
  await cluster?.close();
});

/** Counts up on every device, as agents do whatever becomes of Redis. */
class Counting {
  total = 0n;
  private readonly tokens: bigint[];
  private readonly timer: NodeJS.Timeout;

  constructor(private readonly agents: readonly TestAgent[]) {
    this.tokens = agents.map(() => 0n);
    this.timer = setInterval(() => this.count(), 100);
  }

  stop(): void {
    clearInterval(this.timer);
    // The last frame of each tells all that was counted while nothing could be stored.
    this.count();
  }

  private count(): void {
    for (const [at, agent] of this.agents.entries()) {
      this.tokens[at]! += BigInt(at + 1);
      this.total += BigInt(at + 1);
      agent.telemetry({ decodeTokens: this.tokens[at]! });
    }
  }
}

const setLambda = (coordinator: TestCoordinator, lambda: number) => change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda, topJ: undefined } } });

test('masters die while a rollout is under way, and one with what it had not passed on', async () => {
  const [coordinator, other] = coordinators as [TestCoordinator, TestCoordinator];
  const keys = new Keys(coordinator.prefix);
  const agents = await Promise.all(IDS.map((id, at) => coordinators[at % 2]!.join({ id })));
  const counting = new Counting(agents);
  const show = async (rolloutId: string) => (await askRollouts(other, 'getStagedRollout', { rolloutId })).rollout!;
  try {
    await setLambda(coordinator, 0.1);
    const request = { target: { kind: { $case: 'all' as const, value: true } }, change: { $case: 'setLambda' as const, value: { lambda: 0.3, topJ: undefined } }, why: 'test', timeoutMs: 0, stageMany: false };
    const { id } = (await askRollouts(coordinator, 'startRollout', { change: request, staging: { stages: '1,50%,100%', soakMs: 2500, gate: '', maxUnavailable: 0, deadlineMs: 60_000 } })).rollout!;
    // One that holds the rollout, and one that holds its job or what the fleet is pinned to.
    const [pins, ...victims] = [...new Set([await cluster.masterOf(keys.pins), await cluster.masterOf(keys.stagedRollouts), await cluster.masterOf(`${queuePrefix(coordinator.prefix)}:rollouts:id`), ...await cluster.masters()])];
    await cluster.failover(pins!);
    await cluster.failover(victims[0]!);
    const done = await until('the rollout has reached its end', async () => ((await show(id)).state === State.STATE_DONE ? show(id) : null), 60_000, 100);
    expect(new Set(done.devices.map((device) => device.state))).toEqual(new Set(['applied']));
    for (const agent of agents) expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.1, 0.3]);

    // The last one dies with specs, reports and counts that its replica has never seen.
    const last = victims[1]!;
    const lost = (await Promise.all(IDS.map(async (each) => (await cluster.masterOf(keys.desired(each)) === last ? [each] : [])))).flat();
    expect(lost.length).toBeGreaterThan(0);
    await cluster.detach(last);
    await setLambda(coordinator, 0.4);
    await until('all have it', () => agents.every((agent) => agent.specs.at(-1)!.lambda === 0.4), 5000, 20);
    const generations = agents.map((agent) => agent.desired.at(-1)!.generation);
    await cluster.failover(last);
    await until('what was lost is known again', async () => (await coordinator.registry.devices.readAll()).every(({ desired, reported, lease, info }, at) =>
      lease && info && desired.t === 'set' && desired.generation >= generations[at]! && reported?.appliedHash.toString('hex') === desired.hash), 15_000, 50);
    for (const each of lost) expect((await coordinator.registry.devices.readDesired(each))).toMatchObject({ t: 'set', decoded: { lambda: 0.4 } });

    for (const agent of agents) {
      expect(agent.ended).toBeNull();
      const told = agent.desired.map((desired) => desired.generation);
      expect(told).toEqual([...new Set(told)].sort((a, b) => Number(a - b)));
    }
    counting.stop();
    await until('all is counted, and nothing twice', async () => (await coordinator.registry.telemetry.sums()).all.decodeTokens === counting.total, 15_000, 50);
    expect((await coordinator.registry.telemetry.sums()).boots).toBe(BigInt(IDS.length));
  } finally {
    counting.stop();
  }
}, 120_000);

test('afterwards jobs are queued, wake-ups pass between coordinators, and changes arrive', async () => {
  const [coordinator, other] = coordinators as [TestCoordinator, TestCoordinator];
  expect((await until('a job is queued', () => call(coordinator, 'runLearner', {}), 10_000, 100)).jobId).not.toBe('');
  let heard = false;
  const off = other.registry.events.on(({ deviceId }) => { heard ||= deviceId === 'wake-up'; });
  await until('a wake-up passes', () => {
    coordinator.registry.events.emit({ kind: 'device', deviceId: 'wake-up' });
    return heard;
  }, 10_000, 50);
  off();
  const ended = await setLambda(other, 0.5);
  expect(ended.at(-1)!.devices.map((device) => device.reason).filter(Boolean)).toEqual([]);
});
