/**
 * Brings what the engine runs to what is desired. Level-based: only the latest desired spec counts, and whenever the
 * engine host comes (back) the spec in force is put in force again, whatever was lost in between. One worker at a
 * time; each pass looks at the world as it is.
 *
 * Which record is wanted is LastGood's business: a spec under which the engine crashes twice before it has decoded a
 * token gives way to the last that has. It is then refused for as long as the coordinator sends the same generation.
 */
import { DeviceSpec, type ModelFile, type Reported, Routing, SpecState } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { HostUnavailableError, type LoadedModel } from '../engine-host';
import type { EngineHostClient } from '../host/host-client';
import { LastGood } from '../host/last-good';
import type { ModelKept } from '../models/model-keeper';
import type { RoutingSpec } from '../native';
import type { ReleaseState, WantedRelease } from '../upgrade/agent-upgrade';
import { type CacheLimit, type Effective, effectiveSpec, type Limits, LimitError } from './effective-spec';
import { reportedOf } from './reported';
import { specHash, type SpecRecord, type SpecStore } from './spec-store';

/** No spec has arrived yet: every field unset, which is lambda 0 with as much cache as the device allows. */
export const NO_SPEC: SpecRecord = { generation: 0n, bytes: Buffer.alloc(0), origin: 'default' };

export interface InForce {
  record: SpecRecord;
  effective: Effective;
  /** hash of the model it is in force with */
  modelHash: string;
}

/** `modelHash`: the model that was loaded, null for none; with another one the spec may do. */
interface Failure { generation: bigint; hash: Buffer; reason: string; modelHash: string | null; }

/** Brings the device to the release of the agent that a spec asks for; asked at each pass. */
export interface ReleaseKeeper {
  look(wanted: WantedRelease | undefined, generation: bigint): ReleaseState;
  onChange(listener: () => void): void;
}

/** Brings the device to the model that a spec names; asked at each pass. */
export interface ModelsKeeper {
  look(wanted: ModelFile | undefined, generation: bigint): ModelKept;
  onChange(listener: () => void): void;
}

export class DesiredApplier {
  private readonly wanted = new LastGood<SpecRecord>(NO_SPEC, null);
  private host: EngineHostClient | null = null;
  private inForceNow: InForce | null = null;
  private failure: Failure | null = null;
  private shortage: CacheLimit | null = null;
  private releases: ReleaseKeeper | null = null;
  private models: ModelsKeeper | null = null;
  private modelOnTheWay = false;
  private dirty = false;
  private working: Promise<void> = Promise.resolve();
  private busy = false;
  private readonly listeners = new Set<() => void>();
  private reportedNow: Reported;

  constructor(
    private readonly store: SpecStore,
    private readonly limits: Limits,
    private readonly log: Logger,
  ) {
    this.wanted.prove();
    this.reportedNow = reportedOf({ state: SpecState.SPEC_STATE_UNSPECIFIED, inForce: null, generation: 0n, hash: Buffer.alloc(0), reason: '' });
  }

  /** Takes up the stored spec; before the host is started. */
  restore(): void {
    const { current, proven } = this.store.load();
    if (proven) {
      this.wanted.try(proven);
      this.wanted.prove();
    }
    if (current && !(proven && sameSpec(current, proven))) this.wanted.try(current);
    if (current) this.log.info({ generation: current.generation, origin: current.origin }, 'running the last good spec from disk');
  }

  /** Follows a host; `specFor` is what it opens models with. */
  follow(host: EngineHostClient): void {
    this.host = host;
    host.onStateChange((state) => {
      if (state.t === 'ready') this.reconcileSoon();
      // Where no engine will come, whoever waits for an answer should have one, and another model may be called for.
      else if (state.t === 'failed') {
        this.publish();
        this.reconcileSoon();
      }
    });
    host.onServed(() => this.served());
    host.onCrash(({ reason, modelOnTrial }) => {
      if (!modelOnTrial) this.crashed(reason);
    });
  }

  /** Before anything is received. Without it a spec's release is let be. */
  keepReleases(releases: ReleaseKeeper): void {
    this.releases = releases;
    releases.onChange(() => this.reconcileSoon());
  }

  /** Before anything is received. Without it a spec's model is let be. */
  keepModels(models: ModelsKeeper): void {
    this.models = models;
    models.onChange(() => this.reconcileSoon());
  }

  /** The model that the spec in hand names; undefined for the device's own. */
  get wantedModel(): ModelFile | undefined {
    return DeviceSpec.decode(this.wanted.current.bytes).model;
  }

  get inForce(): InForce | null { return this.inForceNow; }
  get reported(): Reported { return this.reportedNow; }

  onReport(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** The latest from the coordinator; older generations than the one wanted are stale and only answered. */
  receive(record: SpecRecord): void {
    const { current } = this.wanted;
    const hash = specHash(record.bytes);
    const refused = this.failure;
    if (refused?.generation === record.generation && refused.hash.equals(hash) && refused.modelHash === this.modelHash()) return this.publish();
    if (record.generation < current.generation) {
      this.log.warn({ generation: record.generation, current: current.generation }, 'desired spec is older than the current one and ignored');
      return this.publish();
    }
    if (sameSpec(record, current)) return this.reconcileSoon();
    this.log.info({ generation: record.generation, hash: hash.toString('hex').slice(0, 12), origin: record.origin }, 'desired spec received');
    try {
      this.check(record);
    } catch (error) {
      return this.fail(record, (error as Error).message);
    }
    this.failure = null;
    this.wanted.try(record);
    this.publish();
    this.reconcileSoon();
  }

  /** The routing to open `model` with. Throws LimitError where the model does not fit the device. */
  specFor(model: LoadedModel): RoutingSpec {
    try {
      return this.effective(this.recordFor(model), model).routing;
    } catch (error) {
      if (error instanceof LimitError) throw error;
      // Reported by the pass that follows `ready`; until then the model runs as it would without a spec.
      return this.effective(NO_SPEC, model).routing;
    }
  }

  /** Bytes of experts that `model` would hold were memory plenty. */
  wantedBytes(model: LoadedModel): number {
    try {
      return this.effective(this.recordFor(model), model).wantedBytes;
    } catch {
      // `specFor` tells.
      return this.limits.maxCacheBytes;
    }
  }

  /** What `limitCache` is to be once a model is ready that is being opened now. */
  holdCache(shortage: CacheLimit | null): void {
    this.shortage = shortage;
  }

  /**
   * Holds the cache to these bytes, whatever the spec and the device's limits would allow, until told otherwise; null:
   * no longer. What is to be given back is given back at the engine's next layer, before this resolves; the whole spec
   * follows at the next token boundary, and with it the report.
   */
  async limitCache(shortage: CacheLimit | null): Promise<void> {
    this.shortage = shortage;
    const state = this.host?.state;
    const record = this.inForceNow?.record;
    if (shortage && record && state?.t === 'ready') {
      try {
        await this.host!.shrink(this.effective(record, state.model).routing.capacities);
      } catch (error) {
        if (!isGone(error)) this.log.error({ reason: (error as Error).message }, 'the engine gave no memory back');
      }
    }
    this.reconcileSoon();
  }

  /** Resolves when nothing is being applied. */
  idle(): Promise<void> {
    return this.working;
  }

  /**
   * Under which record the loaded model runs. While the one that the latest names is on its way, what that says of routing and cache
   * may be for the newcomer: the one before keeps its own, of the last record that was for it. That no routing be bent holds for all.
   */
  private recordFor(model: LoadedModel): SpecRecord {
    const { current, lastGood } = this.wanted;
    if (!this.modelOnTheWay) return current;
    const { modelHash, routing } = DeviceSpec.decode(current.bytes);
    if (modelHash === '' || modelHash === model.hash || routing === Routing.ROUTING_ORIGINAL) return current;
    if (this.inForceNow?.modelHash === model.hash) return this.inForceNow.record;
    return lastGood && DeviceSpec.decode(lastGood.bytes).modelHash === model.hash ? lastGood : current;
  }

  private effective(record: SpecRecord, model: LoadedModel): Effective {
    return effectiveSpec(DeviceSpec.decode(record.bytes), Number(record.generation), this.limits, model, this.shortage);
  }

  /** Throws where the bytes are no spec, or one that makes no sense for the loaded model. */
  private check(record: SpecRecord): void {
    if (record.generation > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error(`generation ${record.generation} is out of range`);
    try {
      DeviceSpec.decode(record.bytes);
    } catch (error) {
      throw new Error(`the spec cannot be decoded: ${(error as Error).message}`, { cause: error });
    }
    const state = this.host?.state;
    if (state?.t === 'ready') this.effective(record, state.model);
  }

  private reconcileSoon(): void {
    this.dirty = true;
    if (this.busy) return;
    this.busy = true;
    this.working = this.work();
  }

  private async work(): Promise<void> {
    try {
      while (this.dirty) {
        this.dirty = false;
        await this.reconcile();
      }
    } finally {
      this.busy = false;
    }
  }

  private async reconcile(): Promise<void> {
    const state = this.host?.state;
    const record = this.wanted.current;
    if (!this.host) return;
    try {
      const { model: wantedModel, agent } = DeviceSpec.decode(record.bytes);
      const model = this.models?.look(wantedModel, record.generation) ?? { t: 'right' };
      this.modelOnTheWay = model.t === 'on the way';
      // The device's own model failing is the host's to tell.
      if (model.t === 'failed' && (wantedModel || state?.t === 'ready')) return this.giveUp(record, model.reason);
      if (state?.t !== 'ready') return;
      const effective = this.effective(this.recordFor(state.model), state.model);
      // Values are in force at once; the spec as a whole is when model and release are, which may take long.
      await this.host.apply(effective.routing);
      const release = this.releases?.look(agent, record.generation);
      if (release?.t === 'failed') return this.giveUp(record, release.reason);
      if (this.modelOnTheWay || release?.t === 'on the way') return this.publish();
      this.applied(record, effective, state.model.hash);
    } catch (error) {
      // Its return brings us here again.
      if (isGone(error)) return;
      this.giveUp(record, (error as Error).message);
    }
  }

  private applied(record: SpecRecord, effective: Effective, modelHash: string): void {
    const news = this.inForceNow?.record !== record;
    this.inForceNow = { record, effective, modelHash };
    if (news && record !== NO_SPEC) {
      this.save();
      const { routing, lambda, topJ, eviction } = effective.routing;
      this.log.info({ generation: record.generation, routing, lambda, topJ, eviction, cacheBytes: effective.cacheBytes, adjustments: effective.adjustments.length }, 'desired spec applied');
    }
    this.publish();
  }

  /** The engine, or the loaded model, will not have this spec: the one before it is wanted again. */
  private giveUp(record: SpecRecord, reason: string): void {
    if (this.wanted.current !== record) return this.reconcileSoon();
    if (!this.wanted.goBack()) this.wanted.try(NO_SPEC);
    this.fail(record, reason);
    if (record !== NO_SPEC) this.reconcileSoon();
  }

  private fail(record: SpecRecord, reason: string): void {
    this.failure = { generation: record.generation, hash: specHash(record.bytes), reason, modelHash: this.modelHash() };
    this.log.error({ generation: record.generation, reason }, 'desired spec refused');
    this.publish();
  }

  private served(): void {
    if (this.inForceNow?.record === this.wanted.current && this.wanted.prove()) this.save();
  }

  private crashed(reason: string): void {
    const record = this.wanted.current;
    const back = this.wanted.crashed();
    if (!back) return;
    this.inForceNow = null;
    this.fail(record, `the engine crashed twice under it (${reason}); went back to generation ${back.generation}`);
    this.save();
  }

  private modelHash(): string | null {
    const state = this.host?.state;
    return state?.t === 'ready' ? state.model.hash : null;
  }

  private save(): void {
    try {
      const { current, lastGood } = this.wanted;
      this.store.save({ current: current === NO_SPEC ? null : current, proven: lastGood === NO_SPEC ? null : lastGood });
    } catch (error) {
      this.log.error({ reason: (error as Error).message }, 'spec cannot be stored; after a restart the agent will run an older one');
    }
  }

  private publish(): void {
    const { current } = this.wanted;
    const state = this.host?.state;
    const inForce = this.inForceNow;
    const pending = inForce?.record !== current && current !== NO_SPEC;
    const wanted = { generation: current.generation, hash: current === NO_SPEC ? Buffer.alloc(0) : specHash(current.bytes) };
    if (this.failure) {
      this.report(SpecState.SPEC_STATE_FAILED, this.failure, this.failure.reason);
    } else if (pending && !this.modelOnTheWay && state?.t === 'failed' && state.retryAtMs === null) {
      this.report(SpecState.SPEC_STATE_FAILED, wanted, `no engine: ${state.reason}`);
    } else if (pending) {
      this.report(SpecState.SPEC_STATE_APPLYING, wanted, '');
    } else {
      this.report(inForce ? SpecState.SPEC_STATE_APPLIED : SpecState.SPEC_STATE_UNSPECIFIED, wanted, '');
    }
  }

  private report(state: SpecState, { generation, hash }: Pick<Failure, 'generation' | 'hash'>, reason: string): void {
    this.reportedNow = reportedOf({ state, inForce: this.inForceNow, generation, hash, reason });
    for (const listener of this.listeners) listener();
  }
}

/** The host has gone, or closes its engine on the way. */
function isGone(error: unknown): boolean {
  return error instanceof HostUnavailableError || (error as { code?: unknown }).code === 'CLOSED';
}

function sameSpec(a: SpecRecord, b: SpecRecord): boolean {
  return a.generation === b.generation && a.bytes.equals(b.bytes);
}
