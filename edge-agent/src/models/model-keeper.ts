/**
 * Brings this device to the model that its spec names: fetched while the one before serves, then put in its place between two
 * requests. What was fetched before stays until the new one has served a token; the file that the device was set up with is
 * never touched. One that cannot be had or does not run is not tried again under the same generation of the spec; what has come
 * of it stays for the next try, for a week, and goes as soon as the spec names another.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { ModelFetch, ModelFile } from '@moefleet/proto';
import type { Logger, Service } from '@moefleet/runtime';
import { QueueFullError } from '../engine-queue';
import type { EngineHostClient } from '../host/host-client';
import type { CoordinatorBlobs } from './coordinator-blobs';
import type { FetchAllowance } from './fetch-allowance';
import { type Arrived, FetchProgress } from './fetch-progress';
import type { Holdings } from './holdings';
import { short } from './manifest';
import { fetchModel } from './model-fetch';
import type { ModelsFolder } from './models-folder';
import type { PeerExchange } from './peer-exchange';
import { PeerSet } from './peer-set';
import { parseQuietHours } from './quiet-hours';

/** What the applier does with a spec that names a model. */
export type ModelKept = { t: 'right' } | { t: 'on the way' } | { t: 'failed'; reason: string };

export interface ModelKeeperOptions {
  folder: ModelsFolder;
  holdings: Holdings;
  /** null: it runs without a coordinator */
  coordinator: CoordinatorBlobs | null;
  allowance: FetchAllowance;
  /** null: devices beside this one are neither asked nor served */
  exchange: PeerExchange | null;
  host: Pick<EngineHostClient, 'state' | 'modelPath' | 'lastTrouble' | 'onServed'>;
  /** Puts a model in the place of the loaded one, as ModelSwitch does. */
  load: (path: string) => Promise<void>;
  /** Rejects where a file's experts are not what their checksums say. */
  check: (path: string, signal: AbortSignal) => Promise<void>;
  /** the file that the device was set up with */
  setUpPath: string;
  log: Logger;
}

interface Work {
  readonly path: string;
  generation: bigint;
  state: ModelKept | { t: 'in place' };
  progress: FetchProgress | null;
  readonly abort: AbortController;
  done: Promise<void>;
}

const RIGHT: ModelKept = { t: 'right' };
const ON_THE_WAY: ModelKept = { t: 'on the way' };
const QUEUE_FULL_WAIT_MS = 1_000;
/** How often what has come of a model is told while it comes. */
const TELL_MS = 3_000;
/** What has come of one that failed is kept this long for another try. */
const PART_KEPT_MS = 7 * 24 * 3_600_000;
const PART_LOOK_MS = 3_600_000;

export class ModelKeeper implements Service {
  readonly name = 'models';
  /** since this program began */
  readonly arrived: Arrived = { coordinator: 0, peers: 0 };
  private work: Work | null = null;
  private setUp: string;
  private named: string | null = null;
  /** what the latest generation wanted, which it stays when that fails and an older one is back; null before the first */
  private latest: { id: string | null; generation: bigint } | null = null;
  /** models that are no longer wanted may lie in the folder */
  private untidy = true;
  private stopped = false;
  private timer: NodeJS.Timeout | null = null;
  private aging: NodeJS.Timeout | undefined;
  private readonly listeners = new Set<() => void>();
  private readonly tellers = new Set<() => void>();

  constructor(private readonly options: ModelKeeperOptions) {
    this.setUp = options.setUpPath;
  }

  /** Takes up what is in the folder. */
  async start(): Promise<void> {
    const { folder, holdings, host } = this.options;
    for (const id of folder.ids()) holdings.whole(id);
    host.onServed(() => this.tidy());
    this.aging = setInterval(() => this.dropParts((of) => of.dropOldParts(Date.now() - PART_KEPT_MS)), PART_LOOK_MS).unref();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.stopTelling();
    clearInterval(this.aging);
    this.work?.abort.abort(new Error('the agent is stopping'));
    await this.work?.done;
    await this.options.exchange?.stop();
  }

  /** Told when the state may be another. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** Told, while a model comes, when there is something new to tell of it. */
  onProgress(listener: () => void): void {
    this.tellers.add(listener);
  }

  /** undefined while none is being fetched */
  get fetch(): ModelFetch | undefined {
    return this.work?.state.t === 'on the way' ? this.work.progress?.told() : undefined;
  }

  /** Level-based: asked at each pass; begins what has to be done. `wanted` undefined: the model of the device's own. */
  look(wanted: ModelFile | undefined, generation: bigint): ModelKept {
    const { folder, host } = this.options;
    const wrong = wanted && complaintOf(wanted);
    if (wrong) return { t: 'failed', reason: wrong };
    this.named = wanted?.name ?? null;
    this.moveOn(wanted?.manifestSha256 ?? null, generation);
    const path = wanted ? folder.modelPath(wanted.manifestSha256) : this.setUp;
    if (wanted) this.options.allowance.set({ bytesPerSecond: Number(wanted.bytesPerSecond ?? 0n) || null, quietHours: parseQuietHours(wanted.quietHours) });
    // Whatever serves that was not fetched is the device's own, put there by hand or to go back to.
    if (host.modelPath === path || (!wanted && folder.idOf(host.modelPath) === null)) return this.there(path);
    const { work } = this;
    if (work?.path === path && (work.state.t === 'on the way' || work.generation === generation)) {
      work.generation = generation;
      return work.state.t === 'in place' ? this.lost() : work.state;
    }
    return this.begin(path, wanted, generation);
  }

  /** Loads a file of the device's own, which stays unless a spec names another. Rejects as ModelSwitch.load, and where one does. */
  async loadOwn(path: string): Promise<void> {
    if (this.named !== null) throw new Error(`the fleet has this device run the model ${this.named}; take that off first: moefleet model auto --device ID`);
    await this.options.load(path);
    this.setUp = path;
  }

  /** It is the one the host has; whether it runs is the host's to say. */
  private there(path: string): ModelKept {
    if (this.work && this.work.path !== path && this.work.state.t === 'on the way') this.drop(this.work);
    const { state } = this.options.host;
    if (state.t === 'failed' && state.retryAtMs === null) return { t: 'failed', reason: state.reason };
    return state.t === 'ready' && this.work?.state.t !== 'on the way' ? RIGHT : ON_THE_WAY;
  }

  /** It was in place, and the host has gone back to another since. */
  private lost(): ModelKept {
    const { state, lastTrouble } = this.options.host;
    if (state.t !== 'ready') return ON_THE_WAY;
    this.work!.state = { t: 'failed', reason: `model ${this.named ?? 'of the device'}: ${lastTrouble || 'another was loaded in its place'}` };
    return this.work!.state;
  }

  private begin(path: string, wanted: ModelFile | undefined, generation: bigint): ModelKept {
    const before = this.work;
    if (before) this.drop(before);
    const work: Work = { path, generation, state: ON_THE_WAY, progress: null, abort: new AbortController(), done: Promise.resolve() };
    this.work = work;
    work.done = this.bring(work, wanted, before).then(
      () => { work.state = { t: 'in place' }; },
      (error: Error) => {
        if (work.abort.signal.aborted) return;
        this.options.log.error({ model: wanted?.name ?? path, reason: error.message }, 'the model stays as it is');
        work.state = { t: 'failed', reason: `model ${wanted?.name ?? path}: ${error.message}` };
      },
    ).finally(() => {
      if (this.work === work) this.stopTelling();
      this.untidy = true;
      if (!work.abort.signal.aborted) for (const listener of [...this.listeners, ...this.tellers]) listener();
    });
    this.startTelling();
    return work.state as ModelKept;
  }

  private async bring(work: Work, wanted: ModelFile | undefined, before: Work | null): Promise<void> {
    await before?.done;
    const { signal } = work.abort;
    signal.throwIfAborted();
    if (wanted) await this.fetchTo(work, wanted, signal);
    await this.putInPlace(work.path, signal);
  }

  private async fetchTo(work: Work, wanted: ModelFile, signal: AbortSignal): Promise<void> {
    const { coordinator, exchange, folder, holdings, check, log } = this.options;
    if (!coordinator) throw new Error('there is no coordinator to fetch it from');
    const id = wanted.manifestSha256;
    const bytes = Number(wanted.bytes);
    const progress = new FetchProgress(id, bytes, () => performance.now(), this.arrived);
    work.progress = progress;
    holdings.forget(id);
    log.info({ model: wanted.name, manifest: short(id), bytes }, 'fetching a model');
    const peers = await exchange?.begin(id) ?? PeerSet.none(log);
    try {
      await fetchModel({ manifestSha256: id, bytes }, {
        folder, coordinator, peers, check, log, setUpPath: this.setUp, onPart: (part) => holdings.begin(part),
      }, progress, signal);
      holdings.whole(id);
    } catch (error) {
      holdings.forget(id);
      throw error;
    } finally {
      exchange?.end(id);
    }
  }

  /** Waits for its turn among the requests for as long as there are any. */
  private async putInPlace(path: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      try {
        return await this.options.load(path);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof QueueFullError)) throw error;
        await delay(QUEUE_FULL_WAIT_MS, undefined, { signal });
      }
    }
  }

  private drop(work: Work): void {
    if (work.state.t !== 'on the way') return;
    work.abort.abort(new Error('another model is wanted'));
    if (this.work === work) this.work = null;
  }

  /** A token was served: what else was fetched, before or in vain, has nothing left to be kept for. */
  private tidy(): void {
    if (!this.untidy || this.work?.state.t === 'on the way') return;
    this.untidy = false;
    const { folder, holdings, exchange, host, log } = this.options;
    const loaded = folder.idOf(host.modelPath);
    try {
      for (const id of folder.dropOthers(loaded)) {
        log.info({ model: short(id) }, 'an earlier model has been removed');
        holdings.forget(id);
        exchange?.tell(id);
      }
    } catch (error) {
      log.warn({ reason: (error as Error).message }, 'earlier models cannot be removed');
    }
  }

  /** After a start the coordinator may have news that is not on the disk, so what lies there may be wanted still. */
  private moveOn(id: string | null, generation: bigint): void {
    const { latest, work } = this;
    if (latest && generation < latest.generation) return;
    this.latest = { id, generation };
    // Whoever still writes to a part that is wanted no more ends first.
    if (latest && latest.id !== id) void Promise.resolve(work?.done).then(() => this.dropParts((folder) => folder.dropParts(id)));
  }

  private dropParts(which: (folder: ModelsFolder) => string[]): void {
    const { folder, log } = this.options;
    if (this.stopped || this.work?.state.t === 'on the way') return;
    try {
      for (const id of which(folder)) log.info({ model: short(id) }, 'what had come of a model has been removed');
    } catch (error) {
      log.warn({ reason: (error as Error).message }, 'what has come of models cannot be removed');
    }
  }

  private startTelling(): void {
    this.timer ??= setInterval(() => {
      for (const listener of this.tellers) listener();
    }, TELL_MS).unref();
  }

  private stopTelling(): void {
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
  }
}

/** null where it makes sense */
function complaintOf({ name, manifestSha256, bytes, quietHours }: ModelFile): string | null {
  if (!/^[0-9a-f]{64}$/.test(manifestSha256)) return `model ${name}: "${manifestSha256}" is not a SHA-256 in hexadecimal`;
  if (bytes < 1n || bytes > BigInt(Number.MAX_SAFE_INTEGER)) return `model ${name}: ${bytes} bytes are not a size`;
  if (quietHours !== '' && !parseQuietHours(quietHours)) return `model ${name}: quiet hours "${quietHours}" are not like 22:00-06:00`;
  return null;
}
