/** One load from its beginning to its end, and the figures it gives. Everything it starts ends with it. */
import { ChangeConfigRequest, type Rollout, type StagedRollout, StagedRollout_State, stagedRollout_StateToJSON, StartRolloutRequest } from '@moefleet/proto';
import { setTimeout as sleep } from 'node:timers/promises';
import { FalseOffline } from './false-offline';
import { HollowFleet } from './hollow-fleet/hollow-fleet';
import { cpuSeconds, establishedOn, residentBytes } from './process-usage';
import type { Progress } from './progress';
import { type RunningCoordinator, Stage } from './stage';

export interface LoadOptions {
  agents: number;
  /** of steady traffic before memory is read */
  seconds: number;
  tls: boolean;
  /** after the rest: the coordinator is stopped and started again */
  storm: boolean;
  /** two coordinators; after the rest one is killed with SIGKILL */
  killCoordinator: boolean;
  /** new connections per second while all are brought up */
  perSecond: number;
  telemetryIntervalMs: number;
  /** λ changes pushed to all, one after the other; the figures are those of all together */
  pushes: number;
  churnPerSecond: number;
  stalled: number;
  vanishing: number;
  nodeFlags: string[];
}

export interface Recovery {
  connectedAfterMs: number;
  consistent: boolean;
  falseOffline: number;
  /** in stages, under way as it happened: how it ended, and after how long; null: there was none */
  rollout: { state: string; endedAfterMs: number } | null;
  /** agents that run its λ */
  applied: number | null;
  /** decoded tokens that the agents' frames have told of, and what the registry has counted of them */
  tokensTold: number;
  tokensCounted: number;
}

export interface LoadFigures {
  agents: number;
  connected: number;
  connectSeconds: number;
  pushP50Ms: number | null;
  pushP99Ms: number | null;
  /** the operator's call has ended: every device is known to have applied it */
  pushSettledMs: number | null;
  acknowledged: number;
  /** processor time of a push per device, until it has settled; microseconds */
  pushCoordinatorMicros: number | null;
  pushRedisMicros: number | null;
  pushAgentsMicros: number | null;
  bytesPerDevice: number;
  messagesPerSecond: number;
  /** processors busy with the coordinator, with Redis and with the agents during steady traffic */
  coordinatorCpu: number;
  redisCpu: number;
  agentsCpu: number;
  cpuMicrosPerMessage: number;
  falseOffline: number;
  framesSent: number;
  framesCounted: number;
  framesShed: number;
  tlsSessions: number;
  certificates: number;
  tcpConnections: number;
  coordinatorRssBytes: number;
  redisRssBytes: number;
  streamsEnded: Record<string, number>;
  storm: Recovery | null;
  kill: Recovery | null;
}

/** At least, and per agent. */
const CONNECT_TIMEOUT_MS = { least: 150_000, perAgent: 30 };
const RECOVERY_TIMEOUT_MS = 120_000;
const PUSH_TIMEOUT_MS = 60_000;
/** What is on its way when traffic is summed up has arrived by then, or never will. */
const DRAIN_TIMEOUT_MS = 10_000;
/** Of the rollout that is under way as its coordinator is killed. */
const STAGING = { stages: '10%,100%', soakMs: 1000, gate: '', maxUnavailable: 0, deadlineMs: 180_000 };
const SETTLE_MS = 1000;

export class LoadRun {
  private readonly stage: Stage;
  private fleet!: HollowFleet;
  private offline!: FalseOffline;
  private lambda = 0;
  private stopping: Promise<void> | null = null;

  constructor(private readonly options: LoadOptions, private readonly progress: Progress) {
    this.stage = new Stage({ telemetryIntervalMs: options.telemetryIntervalMs, nodeFlags: options.nodeFlags, tls: options.tls });
  }

  async run(): Promise<LoadFigures> {
    const { options, stage, progress } = this;
    await stage.startRedis();
    await stage.startAuthority();
    const coordinator = await stage.startCoordinator(0);
    if (options.killCoordinator) await stage.startCoordinator(1);
    await sleep(2000);
    const emptyBytes = residentBytes(coordinator.pid);
    progress.step(`coordinator up with ${mib(emptyBytes)} MiB; connecting ${options.agents} agents, ${options.perSecond} a second`);
    this.fleet = new HollowFleet({ agents: options.agents, perSecond: options.perSecond, gateways: stage.coordinators.map(({ gateway }) => gateway), vanishing: options.vanishing, tlsFolder: stage.tlsFolder });
    this.offline = new FalseOffline(stage.redisUrl, stage.prefix, this.fleet);
    await this.offline.start();
    await this.fleet.start();
    const begunMs = Date.now();
    await this.allConnected(Math.max(CONNECT_TIMEOUT_MS.least, CONNECT_TIMEOUT_MS.perAgent * options.agents));
    const connectSeconds = (Date.now() - begunMs) / 1000;
    progress.step(`${(await this.fleet.figures()).open} connected after ${connectSeconds.toFixed(1)} s; steady traffic for ${options.seconds} s`);
    const steady = await this.steady();
    const rssBytes = residentBytes(coordinator.pid);
    // As seen by one coordinator: those of its agents.
    const here = (await coordinator.metric('devices_online')).get('') ?? 0;
    const tcpConnections = stage.coordinators.reduce((sum, { gateway }) => sum + establishedOn(gateway.port), 0);
    const push = await this.push();
    const frames = await this.frames();
    const figures = await this.fleet.figures();
    const connected = figures.open;
    const storm = options.storm ? await this.storm() : null;
    const kill = options.killCoordinator ? await this.kill() : null;
    const { falsely } = await this.offline.counted();
    return {
      agents: options.agents, connected, connectSeconds, ...push, ...steady,
      bytesPerDevice: here === 0 ? 0 : Math.round((rssBytes - emptyBytes) / here),
      falseOffline: falsely, ...frames,
      tlsSessions: figures.tlsSessions, certificates: figures.certificates, tcpConnections,
      coordinatorRssBytes: rssBytes, redisRssBytes: residentBytes(stage.redisPid), streamsEnded: (await this.fleet.figures()).ended, storm, kill,
    };
  }

  /** Ends everything; may be called at any time, also twice. */
  stop(): Promise<void> {
    this.stopping ??= (async () => {
      this.offline?.stop();
      await this.fleet?.stop();
      await this.stage.stop();
    })();
    return this.stopping;
  }

  private async allConnected(timeoutMs: number): Promise<boolean> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const { open } = await this.fleet.figures();
      this.progress.now(`${open} of ${this.options.agents} connected`);
      if (open >= this.options.agents) return true;
      if (Date.now() > deadline) {
        this.progress.step(`only ${open} of ${this.options.agents} connected within ${timeoutMs / 1000} s: ${JSON.stringify((await this.fleet.figures()).ended)}`);
        return false;
      }
      await sleep(200);
    }
  }

  private async steady() {
    const { fleet, options } = this;
    if (options.stalled > 0) this.progress.step(`${await fleet.stall(options.stalled)} agents read nothing any more`);
    if (options.vanishing > 0) this.progress.step(`${await fleet.vanish()} agents have vanished without a word and come back`);
    if (options.churnPerSecond > 0) await fleet.churn(options.churnPerSecond);
    const before = { figures: await fleet.figures(), used: this.used() };
    for (let left = options.seconds; left > 0; left -= 1) {
      this.progress.now(`steady traffic, ${left} s left`);
      await sleep(Math.min(left, 1) * 1000);
    }
    const after = { figures: await fleet.figures(), used: this.used() };
    await fleet.churn(0);
    const seconds = (after.used.atMs - before.used.atMs) / 1000;
    const messages = after.figures.sent + after.figures.received - before.figures.sent - before.figures.received;
    const busy = (who: 'coordinator' | 'redis' | 'agents') => (after.used[who] - before.used[who]) / seconds;
    return {
      messagesPerSecond: round(messages / seconds), coordinatorCpu: round(busy('coordinator')), redisCpu: round(busy('redis')), agentsCpu: round(busy('agents')),
      cpuMicrosPerMessage: Math.round(1e6 * busy('coordinator') * seconds / Math.max(1, messages)),
    };
  }

  /** Processor time so far, seconds. */
  private used() {
    const { stage, fleet } = this;
    return {
      coordinator: stage.coordinators.reduce((sum, { pid }) => sum + cpuSeconds(pid), 0), redis: cpuSeconds(stage.redisPid),
      agents: fleet.pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0), atMs: Date.now(),
    };
  }

  private async push() {
    const { options } = this;
    const before = this.used();
    const waits: number[] = [];
    let acknowledged = options.agents;
    let settledMs: number | null = null;
    for (let turn = 0; turn < options.pushes; turn += 1) {
      const pushed = await this.pushOnce();
      waits.push(...pushed.waits);
      acknowledged = Math.min(acknowledged, pushed.waits.length);
      settledMs = Math.max(settledMs ?? 0, pushed.settledMs);
    }
    waits.sort((a, b) => a - b);
    const after = this.used();
    const micros = (who: 'coordinator' | 'redis' | 'agents') => (options.pushes === 0 ? null : Math.round(1e6 * (after[who] - before[who]) / options.pushes / options.agents));
    return {
      pushP50Ms: quantile(waits, 0.5), pushP99Ms: quantile(waits, 0.99), pushSettledMs: settledMs, acknowledged: options.pushes === 0 ? 0 : acknowledged,
      pushCoordinatorMicros: micros('coordinator'), pushRedisMicros: micros('redis'), pushAgentsMicros: micros('agents'),
    };
  }

  /** Milliseconds from the operator's call to each agent's APPLIED. */
  private async pushOnce(): Promise<{ waits: number[]; settledMs: number }> {
    await this.expectNext();
    const begunMs = performance.timeOrigin + performance.now();
    const change = this.change(this.stage.coordinators[0]!);
    const failed = await Promise.race([change.ended, sleep(PUSH_TIMEOUT_MS + 5000, undefined, { ref: false })]);
    if (failed) throw new Error(`the change of λ failed: ${failed.message}`, { cause: failed });
    const settledMs = Math.round(performance.timeOrigin + performance.now() - begunMs);
    const waits = (await this.fleet.arrivals()).map((atMs) => atMs - begunMs);
    this.progress.step(`λ ${this.lambda} to all: ${waits.length} have applied it, p99 ${quantile(waits, 0.99)} ms; settled after ${settledMs} ms (${change.devices()} devices in the rollout)`);
    return { waits, settledMs };
  }

  /** From now on the agents note when they have applied the next λ. */
  private async expectNext(): Promise<void> {
    this.lambda = Math.round((this.lambda + 0.01) * 100) / 100;
    await this.fleet.expect(this.lambda);
  }

  /** λ on all devices, through this coordinator. `ended` resolves with what went wrong, if anything did. */
  private change({ operator }: RunningCoordinator) {
    const call = operator.changeConfig(ChangeConfigRequest.fromPartial({
      target: { kind: { $case: 'all', value: true } }, change: { $case: 'setLambda', value: { lambda: this.lambda, topJ: undefined } }, why: 'load', stageMany: false, timeoutMs: PUSH_TIMEOUT_MS,
    }));
    let last: Rollout | undefined;
    call.on('data', ({ rollout }: { rollout?: Rollout }) => { last = rollout; });
    const ended = new Promise<Error | undefined>((resolve) => { call.on('error', resolve).on('end', () => resolve(undefined)); });
    return { call, ended, devices: () => last?.devices.length ?? 0 };
  }

  /** Sent by the agents, and what has become of them at the coordinators, once the two agree or time is up. */
  private async frames(): Promise<{ framesSent: number; framesCounted: number; framesShed: number }> {
    const deadline = Date.now() + DRAIN_TIMEOUT_MS;
    // While frames go on being sent some are always on their way.
    await this.fleet.quiet(true);
    for (;;) {
      const outcomes = await Promise.all(this.stage.coordinators.map((each) => each.metric('telemetry_frames_total')));
      const framesSent = (await this.fleet.figures()).framesSent;
      const sum = (...names: string[]) => outcomes.reduce((total, values) => total + names.reduce((part, name) => part + (values.get(`outcome="${name}"`) ?? 0), 0), 0);
      const [framesCounted, framesShed] = [sum('stored', 'counted', 'replaced'), sum('shed')];
      if (framesCounted + framesShed === framesSent || Date.now() > deadline) {
        await this.fleet.quiet(false);
        return { framesSent, framesCounted, framesShed };
      }
      await sleep(100);
    }
  }

  /** A clean restart: everybody comes back at once. */
  private async storm(): Promise<Recovery> {
    const before = (await this.offline.counted()).falsely;
    this.progress.step('the coordinator is restarted');
    await this.stage.coordinators[0]!.child.stop();
    await this.stage.startCoordinator(0);
    return this.recovered(Date.now(), before);
  }

  /** The coordinator that has begun a rollout in stages, and drives it, dies while the first stage applies. */
  private async kill(): Promise<Recovery> {
    const before = (await this.offline.counted()).falsely;
    const [survivor, victim] = [this.stage.coordinators[0]!, this.stage.coordinators[1]!];
    await this.expectNext();
    const held = (await victim.metric('devices_online')).get('') ?? 0;
    const { welcomes } = await this.fleet.figures();
    const rolloutId = await this.startStaged(victim);
    while (await this.arrived() === 0) await sleep(20);
    this.progress.step(`one of two coordinators is killed, with ${held} devices and a rollout in its first stage`);
    victim.child.signal('SIGKILL');
    this.stage.coordinators.length = 1;
    victim.close();
    const begunMs = Date.now();
    // Before they have noticed they all look connected.
    while ((await this.fleet.figures()).welcomes < welcomes + held && Date.now() < begunMs + RECOVERY_TIMEOUT_MS) await sleep(50);
    return this.recovered(begunMs, before, () => this.rolloutEnd(survivor, rolloutId, begunMs));
  }

  private startStaged({ rollouts }: RunningCoordinator): Promise<string> {
    const request = StartRolloutRequest.fromPartial({
      change: { target: { kind: { $case: 'all', value: true } }, change: { $case: 'setLambda', value: { lambda: this.lambda, topJ: undefined } }, why: 'load' },
      staging: STAGING,
    });
    return new Promise((resolve, reject) => { rollouts.startRollout(request, (error, answer) => (error ? reject(error) : resolve(answer.rollout!.id))); });
  }

  /** What has become of it, once it has ended or time is up. */
  private async rolloutEnd({ rollouts }: RunningCoordinator, rolloutId: string, sinceMs: number): Promise<NonNullable<Recovery['rollout']>> {
    const deadline = Date.now() + STAGING.deadlineMs;
    const look = () => new Promise<StagedRollout>((resolve, reject) => {
      rollouts.getStagedRollout({ rolloutId }, (error, answer) => (error ? reject(error) : resolve(answer.rollout!)));
    });
    for (;;) {
      const { state, updatedMs } = await look();
      const over = state !== StagedRollout_State.STATE_PLANNED && state !== StagedRollout_State.STATE_RUNNING;
      if (over || Date.now() > deadline) return { state: stagedRollout_StateToJSON(state).replace('STATE_', ''), endedAfterMs: Number(updatedMs) - sinceMs };
      await sleep(200);
    }
  }

  private async arrived(): Promise<number> {
    return (await this.fleet.arrivals()).length;
  }

  /** `rolloutEnd`: of the rollout that is under way. */
  private async recovered(begunMs: number, falselyBefore: number, rolloutEnd: (() => Promise<NonNullable<Recovery['rollout']>>) | null = null): Promise<Recovery> {
    const all = await this.allConnected(RECOVERY_TIMEOUT_MS);
    const connectedAfterMs = Date.now() - begunMs;
    this.progress.step(`all back after ${(connectedAfterMs / 1000).toFixed(1)} s`);
    const rollout = await rolloutEnd?.() ?? null;
    const deadline = Date.now() + PUSH_TIMEOUT_MS;
    const generations = new Set(Object.values(await this.fleet.generations()));
    const tokensTold = await this.fleet.hush();
    const counted = async () => Number((await this.stage.coordinators[0]!.fleetStatus()).totals?.decodeTokens ?? 0n);
    while (await counted() < tokensTold && Date.now() < deadline) await sleep(500);
    // Whatever would be counted twice has had time to be.
    await sleep(SETTLE_MS);
    const { falsely } = await this.offline.counted();
    return {
      connectedAfterMs, consistent: all && (this.options.pushes === 0 && !rollout || generations.size === 1), falseOffline: falsely - falselyBefore,
      rollout, applied: rollout ? await this.arrived() : null, tokensTold, tokensCounted: await counted(),
    };
  }
}

/** Of sorted values; null of none. */
export function quantile(sorted: readonly number[], share: number): number | null {
  if (sorted.length === 0) return null;
  return Math.round(sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)]!);
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}

function mib(bytes: number): string {
  return (bytes / 1024 / 1024).toFixed(0);
}
