/**
 * One device, its coordinators and what lies between them, with every fault the protocol has to bear: the gateway's
 * session and outbox, the registry's scripts on a real Redis, the writer of desired, the agent's applier and its store
 * on a real disk are the true ones. Transport, engine and clock are not: they do what they are told.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConnectRequest, ConnectResponse, Hello, type Reported, SpecState } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { AgentSession } from '../../../coordinator/src/gateway/agent-session';
import { Outbox } from '../../../coordinator/src/gateway/outbox';
import { ReportBatch } from '../../../coordinator/src/gateway/report-batch';
import { TelemetryBatch } from '../../../coordinator/src/gateway/telemetry-batch';
import { WindowRoom } from '../../../coordinator/src/gateway/window-assembly';
import { Metrics } from '../../../coordinator/src/metrics';
import { highestReported, specHash as hexHash } from '../../../coordinator/src/registry/device-record';
import type { RedisLink } from '../../../coordinator/src/registry/redis-link';
import { Registry } from '../../../coordinator/src/registry/registry';
import { PeerExchange } from '../../../coordinator/src/peers/peer-exchange';
import { WarmExchange } from '../../../coordinator/src/warm/warm-exchange';
import { DesiredWriter } from '../../../coordinator/src/rollout/desired-writer';
import { testInfo } from '../../../coordinator/src/testing/test-agent';
import { randomPrefix } from '../../../coordinator/src/testing/test-coordinator';
import { DesiredApplier } from '../../../edge-agent/src/control/desired-applier';
import { SpecStore } from '../../../edge-agent/src/control/spec-store';
import { StateFolder } from '../../../edge-agent/src/control/state-folder';
import { FaultyEngine } from './faulty-engine';

export type Step =
  | { t: 'push'; lambda: number; refusable: boolean; woken: boolean }
  | { t: 'connect' } | { t: 'cut' } | { t: 'toAgent'; twice: boolean } | { t: 'toCoordinator' } | { t: 'stale'; at: number }
  | { t: 'swapToAgent' } | { t: 'tick' } | { t: 'agentDies' } | { t: 'coordinatorDies' } | { t: 'engineDies'; times: number } | { t: 'serve' }
  | { t: 'clock'; byMs: number } | { t: 'redisLosesDesired' };

const DEVICE = 'd';
const LIMITS = { maxCacheBytes: 1024 ** 3, maxLambda: 1, traceRatio: 1 };
const log = createLogger('test', 'silent');

/** One stream: what is on its way in both directions. A message that is lost takes the stream with it, as in TCP. */
interface Stream { session: AgentSession; outbox: Outbox; toAgent: Buffer[]; toCoordinator: Buffer[]; open: boolean; said: number }

export class World {
  readonly registry: Registry;
  readonly engine: FaultyEngine[] = [];
  /** Every spec that was ever desired: hash → λ, and by generation. */
  readonly desiredHashes = new Set<string>();
  private readonly desiredAt = new Map<number, Set<number>>();
  private readonly folder = mkdtempSync(join(tmpdir(), 'moefleet-protocol-'));
  private readonly writer: DesiredWriter;
  private readonly metrics = new Metrics();
  private readonly kept: Buffer[] = [];
  private applier!: DesiredApplier;
  private stream: Stream | null = null;
  private offsetMs = 0;
  private boots = 0;
  private highest = 0n;
  /** Redis has lost what is desired, and nothing has been written since */
  private forgotten = false;
  /** a token was decoded under a spec that was desired */
  private provenOnce = false;
  private readonly realNow = Date.now;

  constructor(link: RedisLink, private readonly prefix = randomPrefix()) {
    this.registry = new Registry(link, { prefix: this.prefix, coordinatorId: 'a' }, log);
    this.writer = new DesiredWriter(this.registry, log);
    Date.now = () => this.realNow() + this.offsetMs;
  }

  async begin(): Promise<void> {
    this.boot();
    await this.connect();
    await this.flow();
  }

  async end(): Promise<void> {
    Date.now = this.realNow;
    await this.stream?.session.leave('over');
    await this.applier.idle();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async step(step: Step): Promise<void> {
    switch (step.t) {
      case 'push': await this.push(step.lambda, step.refusable, step.woken); break;
      case 'connect': await this.connect(); break;
      case 'cut': this.cut(); break;
      case 'toAgent': this.deliverToAgent(step.twice); break;
      case 'toCoordinator': this.deliverToCoordinator(); break;
      case 'stale': if (this.kept.length > 0) this.agentTakes(this.kept[step.at % this.kept.length]!); break;
      case 'swapToAgent': this.stream?.toAgent.push(...this.stream.toAgent.splice(0, 1)); break;
      case 'tick': await this.stream?.session.tick(); break;
      case 'agentDies': this.cut(); this.boot(); break;
      // No farewell: the lease stays until it runs out or the device comes back.
      case 'coordinatorDies': if (this.stream) { this.stream.outbox.close(); this.stream.open = false; this.stream = null; } break;
      case 'engineDies': for (let left = step.times; left > 0; left -= 1) { this.engine.at(-1)!.crash(); await this.settle(); } break;
      case 'serve': this.serve(); break;
      case 'clock': this.offsetMs += step.byMs; break;
      case 'redisLosesDesired': await this.loseDesired(); break;
    }
    await this.settle();
    this.check();
  }

  /** Everything heals: a new stream, and all that is said arrives. */
  async heal(): Promise<void> {
    await this.connect();
    // An operator accepts what a Redis that has forgotten makes of the layers; without that the device keeps its spec.
    await this.writer.align(DEVICE, 'heal', true);
    await this.noteDesired();
    this.stream!.session.wake();
    await this.flow();
    await this.stream!.session.tick();
    await this.flow();
    this.check();
  }

  async outcome() {
    const device = (await this.registry.devices.read(DEVICE))!;
    if (device.desired.t !== 'set') throw new Error('nothing is desired');
    const { reported } = this.applier;
    return {
      desired: { generation: device.desired.generation, hash: device.desired.hash, lambda: device.desired.decoded.lambda },
      settledGeneration: device.settledGeneration,
      refused: reported.state === SpecState.SPEC_STATE_FAILED && reported.generation === device.desired.generation,
      runs: { hash: reported.appliedHash.toString('hex'), generation: reported.appliedGeneration },
      registryKnows: device.reported?.appliedHash.toString('hex'),
      highest: this.highest,
    };
  }

  private async push(lambda: number, refusable: boolean, woken: boolean): Promise<void> {
    // As a change for all does: read first, and where that was all there is to the device, written in one step.
    const subject = (await this.registry.devices.fleetSubjects()).find(({ id }) => id === DEVICE);
    await this.registry.pins.set({ t: 'fleet' }, 'lambda', { why: '', modelHashes: [], lambda, topJ: null });
    await this.registry.pins.set({ t: 'fleet' }, 'sampling', { why: '', sampling: { windowTokens: refusable ? 0 : 8, bytesPerHour: 0 } });
    if (!subject || !await this.writer.alignPlain(subject, 'push')) await this.writer.align(DEVICE, 'push');
    await this.noteDesired();
    if (woken) this.stream?.session.wake();
  }

  /** As when a Redis is restored that never had it. */
  private async loseDesired(): Promise<void> {
    const key = `${this.prefix}:{dev:${DEVICE}}:desired`;
    await this.registry.link.run(key, (client) => client.del(key));
    this.forgotten = true;
    await this.stream?.session.resync();
  }

  private async noteDesired(): Promise<void> {
    const desired = await this.registry.devices.readDesired(DEVICE);
    if (desired.t !== 'set') return;
    // What a Redis that has forgotten still knows is what the device says; one that died meanwhile may have forgotten, too, what it had not run.
    if (this.forgotten) this.highest = highestReported((await this.registry.devices.read(DEVICE))?.reported);
    this.forgotten = false;
    if (desired.generation < this.highest) throw new Error(`generation of desired fell from ${this.highest} to ${desired.generation}`);
    this.highest = desired.generation;
    this.desiredHashes.add(desired.hash);
    const lambdas = this.desiredAt.get(Number(desired.generation)) ?? new Set();
    this.desiredAt.set(Number(desired.generation), lambdas.add(desired.decoded.lambda ?? 0));
  }

  private boot(): void {
    this.boots += 1;
    const engine = new FaultyEngine();
    const applier = new DesiredApplier(new SpecStore(new StateFolder(this.folder), log), LIMITS, log);
    applier.restore();
    applier.follow(engine.client);
    applier.onReport(() => { if (this.applier === applier) this.say({ $case: 'reported', value: applier.reported }); });
    this.engine.push(engine);
    this.applier = applier;
    engine.start();
  }

  private serve(): void {
    this.engine.at(-1)!.serve();
    if ((this.applier.inForce?.record.generation ?? 0n) > 0n) this.provenOnce = true;
  }

  private cut(): void {
    const { stream } = this;
    if (!stream) return;
    this.stream = null;
    stream.open = false;
    this.kept.push(...stream.toAgent);
    void stream.session.leave('cut');
  }

  private async connect(): Promise<void> {
    this.cut();
    const answer = await this.registry.devices.acquireLease(DEVICE, { installId: 'install', bootId: `boot-${this.boots}`, coordinatorId: 'a', hostname: 'h', ttlMs: 60_000 });
    if (answer.t !== 'granted') throw new Error('the same installation was refused its own lease');
    const hello = Hello.fromPartial({
      deviceId: DEVICE, installId: 'install', bootId: `boot-${this.boots}`, protocolVersion: 1, reported: this.applier.reported,
      info: testInfo({ id: DEVICE, modelHash: this.engine.at(-1)!.modelHash }),
    });
    const toAgent: Buffer[] = [];
    const outbox = new Outbox(
      { write: (message, written) => { toAgent.push(Buffer.from(ConnectResponse.encode(message).finish())); setImmediate(written); } },
      (desired) => stream.session.noteSent(desired.generation, hexHash(desired.spec)),
    );
    const telemetry = new TelemetryBatch({ up: false, count: async () => [] }, this.metrics, log);
    const deps = { registry: this.registry, alignDevice: async (id: string) => { const outcome = await this.writer.align(id, 'joined'); await this.noteDesired(); return outcome?.desired ?? null; }, telemetry, reports: new ReportBatch(() => false),
      warm: new WarmExchange(this.registry.warm, { intervalMs: 0 }, this.metrics, log), windowRoom: new WindowRoom(),
      peers: new PeerExchange(this.registry.peers, this.registry.events, Date.now, log), metrics: this.metrics, log };
    const session = new AgentSession(hello, answer.lease, outbox, deps, () => { stream.open = false; });
    const stream: Stream = { session, outbox, toAgent, toCoordinator: [], open: true, said: 0 };
    this.stream = stream;
    session.wake();
    // What changed between hello and welcome.
    this.say({ $case: 'reported', value: this.applier.reported });
  }

  private say(body: NonNullable<ConnectRequest['body']>): void {
    if (this.stream?.open) this.stream.toCoordinator.push(Buffer.from(ConnectRequest.encode({ body }).finish()));
  }

  private deliverToAgent(twice: boolean): void {
    const bytes = this.stream?.toAgent.shift();
    if (!bytes) return;
    this.kept.push(bytes);
    this.agentTakes(bytes);
    if (twice) this.agentTakes(bytes);
  }

  private agentTakes(bytes: Buffer): void {
    const { body } = ConnectResponse.decode(bytes);
    if (body?.$case === 'desired') this.applier.receive({ generation: body.value.generation, bytes: body.value.spec, origin: body.value.origin });
    if (body?.$case === 'reportFullState') this.say({ $case: 'reported', value: this.applier.reported });
  }

  private deliverToCoordinator(): void {
    const bytes = this.stream?.toCoordinator.shift();
    if (bytes) this.stream!.session.receive(ConnectRequest.decode(bytes).body!);
  }

  /** Until nothing is on its way any more. */
  private async flow(): Promise<void> {
    for (let idle = 0; idle < 3;) {
      await this.settle();
      const { stream } = this;
      if (!stream || (stream.toAgent.length === 0 && stream.toCoordinator.length === 0)) { idle += 1; continue; }
      idle = 0;
      while (stream.toAgent.length > 0) this.deliverToAgent(false);
      while (stream.toCoordinator.length > 0) this.deliverToCoordinator();
    }
  }

  /** What has begun comes to rest: the applier, the session, and what they wait for in Redis. */
  private async settle(): Promise<void> {
    await this.applier.idle();
    await new Promise((resolve) => setImmediate(resolve));
    const busy = () => (this.stream?.session as unknown as { settling: Promise<void> | null } | undefined)?.settling;
    for (let work = busy(); work; work = busy()) await work.catch(() => {});
    await this.applier.idle();
  }

  private check(): void {
    for (const engine of this.engine) {
      for (const { generation, lambda } of engine.ran) {
        if (generation === 0 ? lambda === 0 : this.desiredAt.get(generation)?.has(lambda)) continue;
        throw new Error(`the engine ran generation ${generation} with lambda ${lambda}, which was never desired`);
      }
    }
    const reported: Reported = this.applier.reported;
    const hash = reported.appliedHash.toString('hex');
    if (hash !== '' && !this.desiredHashes.has(hash)) throw new Error(`the agent says it runs ${hash}, which was never desired`);
    if (this.provenOnce && this.applier.inForce?.record.generation === 0n) throw new Error('the last good spec was lost');
    if (this.provenOnce && this.applier.inForce === null && this.engine.at(-1)!.state.t === 'ready') throw new Error('nothing is in force though a spec was proven');
  }
}
