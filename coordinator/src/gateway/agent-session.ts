/**
 * One device that has said hello and holds its lease. Level-based: whenever something may have changed it writes what
 * the device says to the registry, reads what it shall run, and sends that if it differs. What could not be written
 * while Redis was away is kept here (the newest of each) and written when it is back, so an outage loses nothing.
 */
import { type ConnectRequest, type DeviceInfo, type ExpertUse, type Hello, type Measure, type MeasureResult, type Reported, type RouterWindow, SpecState, type TaskProgress, type TelemetryFrame } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { isDeepStrictEqual } from 'node:util';
import { DeviceRefusedError, DeviceUnavailableError, InvalidRequestError, RegistryUnavailableError, ReplacedError } from '../errors';
import type { Metrics } from '../metrics';
import { type DesiredRecord, generationOf, highestReported, shareModel } from '../registry/device-record';
import type { Lease } from '../registry/device-store';
import type { Registry } from '../registry/registry';
import type { DeviceSession } from '../sessions/session-directory';
import { decideDesired, type KnownDesired, type SentDesired } from './desired-decision';
import { checkExpertUse, checkHolding, checkInfo, checkReported, checkTelemetry, checkWindow } from './message-check';
import { nextTurn } from './next-turn';
import type { Outbox } from './outbox';
import { PeerPost } from './peer-post';
import type { ReportBatch } from './report-batch';
import type { PeerExchange } from '../peers/peer-exchange';
import { SITE_LABEL } from '../peers/peer-site';
import { TaskBoard } from './task-board';
import type { TelemetryBatch } from './telemetry-batch';
import { TelemetryIntake } from './telemetry-intake';
import type { WarmExchange } from '../warm/warm-exchange';
import { WarmPost } from './warm-post';
import { WindowAssembly, type WindowRoom } from './window-assembly';

export interface SessionDeps {
  registry: Registry;
  /** Brings desired in line with the pins and the learner's value: what it shall run now; null where that has to be read. */
  alignDevice(deviceId: string): Promise<DesiredRecord | null>;
  telemetry: TelemetryBatch;
  reports: ReportBatch;
  warm: WarmExchange;
  windowRoom: WindowRoom;
  peers: PeerExchange;
  metrics: Metrics;
  log: Logger;
}

/** Longer than any agent is told to stay away by a coordinator that stops, connecting included. */
const COMES_BACK_MS = 30_000;

/** What has to be done at the next settling. */
interface Pending { info: boolean; reported: boolean; align: boolean }

export class AgentSession implements DeviceSession {
  readonly deviceId: string;
  readonly installId: string;
  // Made where they are first needed: most devices are idle most of the time, and there are thousands.
  private tasks: TaskBoard | null = null;
  private readonly telemetry: TelemetryIntake;
  private readonly warm: WarmPost;
  private windows: WindowAssembly | null = null;
  private peers: PeerPost | null = null;
  private info: DeviceInfo | undefined;
  private reported: Reported | undefined;
  private readonly pending: Pending = { info: true, reported: true, align: true };
  private sent: SentDesired | null = null;
  /** Latest generation whose answer has been timed. */
  private answered = 0n;
  /** What it shall run, as read last; without its bytes, of which there are many. */
  private known: Extract<KnownDesired, { t: 'set' }> | null = null;
  private settledGeneration: bigint | null = null;
  private seenGeneration: bigint | null = null;
  private wanted = false;
  private settling: Promise<void> | null = null;
  /** The last settling failed; the next tick tries again. */
  private unsettled = false;
  private resendTimer: NodeJS.Timeout | undefined;
  private closed = false;

  constructor(hello: Hello, private readonly lease: Lease, private readonly outbox: Outbox, private readonly deps: SessionDeps, private readonly end: (error: unknown) => void) {
    const { deviceId } = hello;
    this.deviceId = deviceId;
    this.installId = hello.installId;
    this.info = hello.info && shareModel(hello.info);
    this.reported = hello.reported;
    this.warm = new WarmPost(deps.warm, deps.registry.uses, outbox, deps.metrics);
    this.telemetry = new TelemetryIntake(
      { takeFrame: (frame) => this.countFrame(frame), storeWindow: (window) => this.storeWindow(window) },
      deps.metrics,
      (missing) => {
        deps.metrics.telemetryGaps.inc();
        deps.log.info({ deviceId, missing: String(missing) }, 'gap in the telemetry; asking for the full state');
        outbox.postReportFullState();
      },
      (err) => deps.log.error({ deviceId, err }, 'telemetry cannot be stored'),
    );
  }

  /** Throws InvalidRequestError for a message that makes no sense. Telemetry beyond the device's budget is shed. */
  receive(body: NonNullable<ConnectRequest['body']>, withinBudget = true): void {
    if (!withinBudget && this.shed(body)) return;
    switch (body.$case) {
      case 'hello': throw new InvalidRequestError('hello', 'a second one', 'allowed; a stream begins with exactly one');
      case 'info': checkInfo(body.value); this.takeInfo(body.value); break;
      case 'reported': checkReported(body.value); this.takeReported(body.value); break;
      case 'telemetry': checkTelemetry(body.value); this.telemetry.takeFrame(body.value); break;
      case 'routerWindow': checkWindow(body.value); this.telemetry.takeWindow(body.value); break;
      case 'expertUse': checkExpertUse(body.value); void this.takeExpertUse(body.value); break;
      case 'windowChunk': this.windowsMade().take(body.value); break;
      case 'modelHolding': checkHolding(body.value); this.peersMade().take(body.value); break;
      case 'taskUpdate': this.tasks?.update(body.value); break;
    }
  }

  measure(measure: Measure, signal: AbortSignal, onProgress: (progress: TaskProgress) => void): Promise<MeasureResult> {
    if (this.closed) return Promise.reject(new DeviceUnavailableError(this.deviceId, 'has left'));
    this.tasks ??= new TaskBoard(this.deviceId, this.outbox);
    return this.tasks.measure(measure, signal, onProgress);
  }

  /**
   * Looks again at what the device shall run, once the messages that have come already are taken. Cheap to call; never runs
   * twice at once. `written`: what has just been written for it here, which need not be read.
   */
  wake(written?: Extract<DesiredRecord, { t: 'set' }>): void {
    if (written && this.sendAtOnce(written)) return;
    this.wanted = true;
    this.settling ??= this.settleWhileWanted().finally(() => {
      this.settling = null;
      if (this.wanted && !this.closed && !this.unsettled) this.wake();
    });
  }

  /** A Desired has left for the stream. */
  noteSent(generation: bigint, hash: string): void {
    this.sent = { generation, hash, sentMs: Date.now() };
    this.deps.metrics.desiredSent.inc();
  }

  /** Prolongs the lease, and notices what a lost wake-up or a failed write has left undone. */
  async tick(): Promise<void> {
    // Sessions are ticked in turn; one that has left meanwhile must not take its lease again.
    if (this.closed) return;
    try {
      const kept = await this.deps.registry.devices.renewLease(this.lease);
      if (this.closed) return;
      if (!kept) {
        this.deps.metrics.leasesLost.inc();
        return this.end(new ReplacedError(this.deviceId));
      }
      this.peers?.renew();
      if (this.unsettled || kept.desiredGeneration !== this.seenGeneration) this.wake();
    } catch (error) {
      if (error instanceof DeviceRefusedError) this.end(error);
      else if (!(error instanceof RegistryUnavailableError)) this.deps.log.error({ deviceId: this.deviceId, err: error }, 'lease cannot be prolonged');
    }
  }

  /** Redis is back, perhaps without what it held: says everything again. */
  async resync(): Promise<void> {
    if (this.closed) return;
    Object.assign(this.pending, { info: true, reported: true, align: true } satisfies Pending);
    this.settledGeneration = null;
    this.known = null;
    await this.tick();
    await this.deps.registry.devices.remember(this.deviceId).catch(() => { this.unsettled = true; });
    if (this.closed) return;
    this.peers?.renew(true);
    this.wake();
  }

  setPace(telemetryIntervalMs: number): void {
    this.outbox.postPace({ telemetryIntervalMs });
  }

  /** A newer stream of the same installation is here. */
  replaced(): void {
    this.end(new ReplacedError(this.deviceId));
  }

  /**
   * The stream has ended: fails what waits for the device and gives the lease back. A device that comes back, because
   * it was this coordinator that ended the stream, keeps its lease for a while, so that nobody sees it as offline.
   */
  async leave(why: string, comesBack = false): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.resendTimer);
    this.outbox.close();
    this.telemetry.close();
    this.windows?.close();
    this.tasks?.leave(why);
    await this.settling?.catch(() => {});
    await this.peers?.leave(comesBack);
    try {
      await this.deps.registry.devices.releaseLease(this.lease, comesBack ? COMES_BACK_MS : 0);
      this.deps.registry.events.emit({ kind: 'device', deviceId: this.deviceId });
    } catch (error) {
      // The lease runs out by itself.
      if (!(error instanceof RegistryUnavailableError)) this.deps.log.error({ deviceId: this.deviceId, err: error }, 'lease cannot be released');
    }
  }

  private windowsMade(): WindowAssembly {
    const { deps, outbox, deviceId } = this;
    return this.windows ??= new WindowAssembly(
      { store: (window) => this.storeWindow(window), acknowledge: (ack) => outbox.postWindowAck(ack) }, deps.windowRoom, deps.metrics,
      (err) => deps.log.error({ deviceId, err }, 'router window cannot be stored'),
    );
  }

  private peersMade(): PeerPost {
    const { deps, outbox, deviceId } = this;
    return this.peers ??= new PeerPost(deps.peers, this.lease, outbox, async () => (await deps.registry.devices.readSubject(deviceId))?.labels[SITE_LABEL] ?? '', deps.log);
  }

  private shed(body: NonNullable<ConnectRequest['body']>): boolean {
    if (body.$case === 'telemetry') this.deps.telemetry.noteShed();
    else if (body.$case === 'routerWindow') this.deps.metrics.routerWindows.inc({ outcome: 'shed' });
    else if (body.$case === 'expertUse') this.deps.metrics.expertUse.inc({ outcome: 'shed' });
    else if (body.$case === 'windowChunk') this.windowsMade().shed(body.value.windowId.slice(0, 64));
    else return false;
    return true;
  }

  private async takeExpertUse(use: ExpertUse): Promise<void> {
    try {
      await this.warm.takeUse(this.reporter(), this.info, use);
    } catch (error) {
      this.deps.log.error({ deviceId: this.deviceId, err: error }, 'expert use cannot be kept');
    }
    if (!this.closed) await this.warm.offer(this.info);
  }

  /** How many older ones went for it. */
  private async storeWindow(window: RouterWindow): Promise<number> {
    const dropped = await this.deps.registry.windows.push(this.deviceId, window);
    await this.warm.takeWindow(this.reporter(), this.info, window);
    return dropped;
  }

  private reporter() {
    return { deviceId: this.deviceId, bootId: this.lease.request.bootId, effective: this.reported?.effective };
  }

  private countFrame(frame: TelemetryFrame): void {
    const { model, labels } = this.info ?? {};
    this.deps.telemetry.put({ deviceId: this.deviceId, bootId: this.lease.request.bootId, model: model?.hash ?? '', class: labels?.['class'] ?? '', frame });
  }

  private takeInfo(info: DeviceInfo): void {
    // After its welcome it says again what it said in its hello.
    info = shareModel(info);
    if (isDeepStrictEqual(info, this.info)) return;
    this.pending.align ||= info.model?.hash !== this.info?.model?.hash || JSON.stringify(info.labels) !== JSON.stringify(this.info?.labels);
    this.info = info;
    this.pending.info = true;
    this.wake();
  }

  private takeReported(reported: Reported): void {
    if (reported.state === SpecState.SPEC_STATE_FAILED && this.reported?.state !== reported.state) {
      this.deps.log.warn({ deviceId: this.deviceId, generation: String(reported.generation), reason: reported.reason }, 'device refused its desired spec');
    }
    this.observeAnswer(reported);
    if (isDeepStrictEqual(reported, this.reported)) return;
    this.reported = reported;
    this.pending.reported = true;
    // APPLYING and APPLIED mostly come together, and are then written as one.
    if (this.onlyReported()) this.deps.reports.put(this);
    else this.wake();
  }

  /** Whether there is nothing to do but to write what it reports. */
  private onlyReported(): boolean {
    const { info, reported, align } = this.pending;
    return this.known !== null && reported && !info && !align && !this.settling && !this.wanted && !this.unsettled && !this.closed;
  }

  /** Writes what it reports, in as few steps as there can be: thousands do after a push. Settles where more has to be done. */
  writeReport(): void {
    if (!this.pending.reported || this.closed) return;
    const { known, reported } = this;
    const decision = known && this.onlyReported() ? decideDesired(known, reported, this.sent, Date.now()) : null;
    if (!reported || (decision?.t !== 'settled' && decision?.t !== 'wait')) return this.wake();
    const settled = decision.t === 'settled' ? decision.generation : null;
    this.pending.reported = false;
    this.settling = this.deps.registry.devices.writeState(this.lease, { reported }, settled).then(
      (written) => this.reportWritten(known!, settled, written),
      (error: unknown) => {
        this.settling = null;
        this.pending.reported = true;
        this.unsettled = true;
        this.tellUnsettled(error);
      },
    );
  }

  private reportWritten(known: NonNullable<typeof this.known>, settled: bigint | null, written: { desiredGeneration: bigint } | null): void {
    this.settling = null;
    if (!written) return this.end(new ReplacedError(this.deviceId));
    this.tellWritten(known, settled, written.desiredGeneration);
    if (this.closed) return;
    if (this.wanted || written.desiredGeneration !== known.generation || this.known !== known) this.wake();
    else if (this.pending.reported) this.deps.reports.put(this);
    else clearTimeout(this.resendTimer);
  }

  private observeAnswer({ generation, state }: Reported): void {
    const { sent } = this;
    if (!sent || generation < sent.generation || this.answered >= sent.generation) return;
    if (state !== SpecState.SPEC_STATE_APPLIED && state !== SpecState.SPEC_STATE_FAILED) return;
    this.answered = sent.generation;
    this.deps.metrics.acknowledged.observe((Date.now() - sent.sentMs) / 1000);
  }

  private async settleWhileWanted(): Promise<void> {
    this.unsettled = false;
    while (this.wanted && !this.closed) {
      // APPLYING and APPLIED mostly come together, and are then written as one.
      await nextTurn();
      this.wanted = false;
      try {
        await this.settle();
      } catch (error) {
        this.unsettled = true;
        return this.tellUnsettled(error);
      }
    }
  }

  private tellUnsettled(error: unknown): void {
    if (!(error instanceof RegistryUnavailableError)) this.deps.log.error({ deviceId: this.deviceId, err: error }, 'device cannot be brought in line');
  }

  private async settle(): Promise<void> {
    const written = await this.writeState();
    if (!written) return;
    // A report changes what the device says, seldom what it shall run: then there is nothing to read.
    if (this.known && written.desiredGeneration === this.known.generation && !this.pending.align && await this.act(this.known)) return;
    let desired = await this.alignAndRead();
    if (highestReported(this.reported) > generationOf(desired)) {
      this.pending.align = true;
      desired = await this.alignAndRead();
    }
    this.seenGeneration = generationOf(desired);
    void this.warm.offer(this.info);
    this.known = desired.t === 'set' ? { t: 'set', generation: desired.generation, hash: desired.hash } : null;
    await this.act(desired);
  }

  /** What the registry says it shall run, null where nothing had to be written; or null: the stream is over. */
  private async writeState(): Promise<{ desiredGeneration: bigint | null } | null> {
    const { info, reported } = this.pending;
    if (!info && !reported) return this.closed ? null : { desiredGeneration: null };
    Object.assign(this.pending, { info: false, reported: false });
    const fields = { ...(info && this.info ? { info: this.info } : {}), ...(reported && this.reported ? { reported: this.reported } : {}) };
    const { known } = this;
    const decision = known ? decideDesired(known, this.reported, this.sent, Date.now()) : null;
    const settled = decision?.t === 'settled' ? decision.generation : null;
    let written: { desiredGeneration: bigint } | null;
    try {
      written = await this.deps.registry.devices.writeState(this.lease, fields, settled);
    } catch (error) {
      this.pending.info ||= info;
      this.pending.reported ||= reported;
      throw error;
    }
    if (!written) {
      this.end(new ReplacedError(this.deviceId));
      return null;
    }
    this.tellWritten(known, settled, written.desiredGeneration);
    return this.closed ? null : written;
  }

  private tellWritten(known: typeof this.known, settled: bigint | null, desiredGeneration: bigint): void {
    const runs = known && settled === desiredGeneration ? { generation: settled, hash: known.hash } : undefined;
    if (runs) this.settledGeneration = runs.generation;
    this.deps.registry.events.emit({ kind: 'device', deviceId: this.deviceId, runs });
  }

  /** false: something else has to be done first, or it may not be the newest. */
  private sendAtOnce(written: Extract<DesiredRecord, { t: 'set' }>): boolean {
    const { generation, hash } = written;
    const { info, reported, align } = this.pending;
    if (this.settling || info || reported || align || this.closed || generation <= (this.seenGeneration ?? 0n)) return false;
    if (decideDesired(written, this.reported, this.sent, Date.now()).t !== 'send') return false;
    clearTimeout(this.resendTimer);
    this.seenGeneration = generation;
    this.known = { t: 'set', generation, hash };
    this.outbox.postDesired({ generation, spec: written.spec, origin: written.origin });
    return true;
  }

  private async alignAndRead(): Promise<DesiredRecord> {
    if (this.pending.align) {
      this.pending.align = false;
      try {
        const aligned = await this.deps.alignDevice(this.deviceId);
        if (aligned) return aligned;
      } catch (error) {
        this.pending.align = true;
        throw error;
      }
    }
    return this.deps.registry.devices.readDesired(this.deviceId);
  }

  /** false: it has to be sent, for which its bytes must be read. */
  private async act(desired: DesiredRecord | KnownDesired): Promise<boolean> {
    const decision = decideDesired(desired, this.reported, this.sent, Date.now());
    clearTimeout(this.resendTimer);
    if (this.closed) return true;
    if (decision.t === 'send' && desired.t === 'set') {
      if (!('spec' in desired)) return false;
      this.outbox.postDesired({ generation: desired.generation, spec: desired.spec, origin: desired.origin });
    }
    if (decision.t === 'later') this.resendTimer = setTimeout(() => this.wake(), decision.inMs);
    if (decision.t === 'settled' && decision.generation !== this.settledGeneration) {
      await this.deps.registry.devices.writeState(this.lease, { settledGeneration: decision.generation });
      this.settledGeneration = decision.generation;
      this.deps.registry.events.emit({ kind: 'device', deviceId: this.deviceId });
    }
    return true;
  }
}
