/**
 * A Redis, two coordinators and some scripted agents, the links between them where they can be cut, and what must hold
 * whatever is done to any of them. Agents are with coordinator `a`, where changes are made; `b` can take over.
 */
import { credentials } from '@grpc/grpc-js';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ChangeConfigRequest, OperatorServiceClient, type Rollout, RolloutDevice_State as RowState, RolloutServiceClient, Staging } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { generationOf } from '../../../coordinator/src/registry/device-record';
import { RedisLink } from '../../../coordinator/src/registry/redis-link';
import { Registry } from '../../../coordinator/src/registry/registry';
import type { StagedRollout, StagedRow } from '../../../coordinator/src/registry/staged-rollout';
import { askRollouts, randomPrefix } from '../../../coordinator/src/testing/test-coordinator';
import { until } from '../../harness/ports';
import { startRedis, type TestRedis } from '../../harness/redis';
import { TcpProxy } from '../../harness/tcp-proxy';
import { type AgentStep, checkJournal, tokensOf } from './agent-journal';
import { AgentProcess, CoordinatorProcess } from './fault-processes';

const HOLDS: readonly AgentStep[] = ['received', 'applying', 'persisted', 'measuring'];
const PATIENCE_MS = 40_000;
const CHANGE_TIMEOUT_MS = 60_000;
const log = createLogger('test', 'silent');

export class FaultFleet {
  readonly registry: Registry;
  private readonly link: RedisLink;
  /** λ of every change that was ever made */
  private readonly desired = new Set<number>();
  private readonly highest = new Map<string, bigint>();
  /** what an operator was told and was not so */
  private readonly lies: string[] = [];
  private readonly calls = new Set<{ cancel(): void; client: OperatorServiceClient }>();
  private lambda = 0;

  private constructor(
    private readonly folder: string, readonly redis: TestRedis, readonly toRedis: TcpProxy, readonly toAgents: TcpProxy,
    readonly a: CoordinatorProcess, readonly b: CoordinatorProcess, readonly agents: readonly AgentProcess[], prefix: string,
  ) {
    this.link = new RedisLink({ url: redis.url, cluster: false }, log);
    this.registry = new Registry(this.link, { prefix, coordinatorId: 'onlooker' }, log);
  }

  static async start(agentIds: readonly string[]): Promise<FaultFleet> {
    const folder = mkdtempSync(join(tmpdir(), 'moefleet-faults-'));
    const prefix = randomPrefix();
    const redis = await startRedis();
    const toRedis = await new TcpProxy({ host: '127.0.0.1', port: redis.port }).start();
    const a = new CoordinatorProcess('a', `redis://${toRedis.address}`, prefix);
    const b = new CoordinatorProcess('b', redis.url, prefix);
    // Where to is known once a coordinator is there.
    const toAgents = await new TcpProxy({ host: '127.0.0.1', port: redis.port }).start();
    const agents = agentIds.map((id) => new AgentProcess(id, toAgents.address, join(folder, id)));
    const fleet = new FaultFleet(folder, redis, toRedis, toAgents, a, b, agents, prefix);
    try {
      await Promise.all([a.start(), b.start()]);
      toAgents.target = a.gateway;
      for (const agent of agents) agent.start();
      await fleet.link.start();
      await fleet.home();
      return fleet;
    } catch (error) {
      await fleet.stop();
      throw error;
    }
  }

  async stop(): Promise<void> {
    for (const call of this.calls) this.drop(call);
    this.redis.signal('SIGCONT');
    await Promise.all([...this.agents, this.a, this.b].map((each) => each.kill()));
    await this.link.stop();
    await Promise.all([this.toAgents.stop(), this.toRedis.stop()]);
    await this.redis.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  agent(id: string): AgentProcess {
    return this.agents.find((agent) => agent.id === id)!;
  }

  /** One that no change had before. */
  nextLambda(from = 0): number {
    this.lambda += 1;
    const lambda = (Math.round(from * 10_000) + this.lambda) / 10_000;
    this.desired.add(lambda);
    return lambda;
  }

  /** To every device at once, through `a`. What is told of it is held against what the devices have done. */
  change(lambda: number): void {
    const client = new OperatorServiceClient(this.a.operator, credentials.createInsecure());
    const call = client.changeConfig(ChangeConfigRequest.fromPartial({ ...changeTo(lambda), timeoutMs: CHANGE_TIMEOUT_MS }));
    const open = { cancel: () => call.cancel(), client };
    this.calls.add(open);
    call.on('data', ({ rollout }: { rollout?: Rollout }) => { if (rollout) this.checkTold(rollout, lambda); });
    // The operator learns that the coordinator has gone, which is true.
    call.on('error', () => {});
    call.on('end', () => this.drop(open));
  }

  /** In stages, through `a`; its id. */
  async startRollout(lambda: number, staging: Partial<Staging>): Promise<string> {
    const rollouts = new RolloutServiceClient(this.a.operator, credentials.createInsecure());
    try {
      const change = ChangeConfigRequest.fromPartial(changeTo(lambda));
      return (await askRollouts({ rollouts }, 'startRollout', { change, staging: Staging.fromPartial(staging) })).rollout!.id;
    } finally {
      rollouts.close();
    }
  }

  async rollout(id: string): Promise<{ rollout: StagedRollout; rows: StagedRow[] }> {
    return { rollout: (await this.registry.stagedRollouts.read(id))!, rows: await this.registry.stagedRollouts.rows(id) };
  }

  /** Lets go whatever is held. */
  release(): void {
    for (const agent of this.agents) for (const step of HOLDS) agent.release(step);
    this.toAgents.held = false;
  }

  /** Ends what a case that has failed has left behind, so that the next one fails for reasons of its own. */
  heal(): void {
    this.release();
    for (const proxy of [this.toAgents, this.toRedis]) Object.assign(proxy, { blackhole: false, silent: false });
  }

  async leaseOf(id: string): Promise<string | null> {
    return (await this.registry.devices.read(id))?.lease?.coordinatorId ?? null;
  }

  /** All agents are with `a` again. */
  async home(): Promise<void> {
    this.toAgents.target = this.a.gateway;
    const away = async () => (await Promise.all(this.agents.map(({ id }) => this.leaseOf(id)))).some((holder) => holder !== 'a');
    if (await away()) this.toAgents.cut();
    await until('all agents are with a', async () => !await away(), PATIENCE_MS, 20);
  }

  /** Every device runs this λ, and the registry knows it. */
  async converges(lambda: number): Promise<void> {
    let open: unknown[] = [];
    await until(`all run lambda ${lambda}`, async () => {
      const devices = await Promise.all(this.agents.map(({ id }) => this.registry.devices.read(id)));
      open = devices.flatMap((device, at) => {
        const { desired, reported, lease, settledGeneration, id } = device!;
        const ran = this.agents[at]!.lastRun();
        const good = desired.t === 'set' && desired.decoded.lambda === lambda && lease !== null && reported?.appliedHash.toString('hex') === desired.hash
          && settledGeneration === desired.generation && ran?.generation === Number(desired.generation) && ran.lambda === lambda;
        return good ? [] : [{ id, lease: lease?.coordinatorId, desired: generationOf(desired), wanted: desired.t === 'set' && desired.decoded.lambda, reported: reported?.generation, applied: reported?.appliedGeneration, state: reported?.state, settledGeneration, ran }];
      });
      return open.length === 0;
    }, PATIENCE_MS, 20).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(open, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))}`, { cause: error });
    });
  }

  /** Throws where anything has happened that never may. */
  async checkInvariants(): Promise<void> {
    for (const { id, journal } of this.agents) checkJournal(id, journal, this.desired);
    for (const { id } of this.agents) {
      const generation = generationOf(await this.registry.devices.readDesired(id));
      const before = this.highest.get(id) ?? 0n;
      if (generation < before) throw new Error(`${id}: generation of desired fell from ${before} to ${generation}`);
      this.highest.set(id, generation);
    }
    if (this.lies.length > 0) throw new Error(`an operator was told: ${this.lies.join('; ')}`);
    const counted = Number((await this.registry.telemetry.sums()).all.decodeTokens);
    const sent = this.agents.reduce((sum, { journal }) => sum + tokensOf(journal), 0);
    if (counted > sent) throw new Error(`${counted} tokens were counted, and ${sent} were there`);
  }

  private checkTold(rollout: Rollout, lambda: number): void {
    for (const { deviceId, state, generation } of rollout.devices) {
      if (state !== RowState.STATE_APPLIED) continue;
      const ran = this.agent(deviceId).journal.some((entry) => entry.t === 'ran' && entry.generation === Number(generation) && entry.lambda === lambda);
      if (!ran) this.lies.push(`${deviceId} has applied generation ${generation}`);
    }
  }

  private drop(call: { cancel(): void; client: OperatorServiceClient }): void {
    this.calls.delete(call);
    call.cancel();
    call.client.close();
  }
}

function changeTo(lambda: number) {
  return { target: { kind: { $case: 'all' as const, value: true } }, change: { $case: 'setLambda' as const, value: { lambda } }, why: 'faults' };
}
