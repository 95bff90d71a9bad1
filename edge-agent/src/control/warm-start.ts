/**
 * Fills the expert cache from the list of what the fleet finds worth holding: when a model has been loaded, when the
 * cache has grown, and when a list has come. Only into room that is there, on idle lanes and between requests
 * (native/engine/warm-fill.h); so it costs no request anything. The latest list is kept in the state folder, so that a
 * restart starts warm before, or without, a coordinator.
 */
import { WarmList } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { HostUnavailableError, type HostState } from '../engine-host';
import type { WarmResult } from '../native';
import type { InForce } from './desired-applier';
import type { StateFolder } from './state-folder';
import { checkListSize, rankedFor, WarmListError } from './warm-list';

const FILE = 'warm-list.json';

export interface WarmStartOptions {
  host: {
    readonly state: HostState;
    warm(ranked: Int32Array[]): Promise<WarmResult>;
    onStateChange(listener: (state: HostState) => void): () => void;
  };
  applier: { readonly inForce: InForce | null; onReport(listener: () => void): () => void };
  folder: Pick<StateFolder, 'read' | 'write'>;
  log: Logger;
  /** milliseconds, monotonic */
  now: () => number;
}

export class WarmStart {
  private list: WarmList | null = null;
  /** the most that each layer has had room for since its model was loaded */
  private capacities: number[] = [];
  private working: Promise<void> = Promise.resolve();

  constructor(private readonly options: WarmStartOptions) {}

  /** Takes up the stored list and follows the engine host; before the host is started. */
  follow(): void {
    const { host, applier } = this.options;
    this.list = this.load();
    host.onStateChange((state) => {
      if (state.t !== 'ready') return;
      this.capacities = [];
      this.fill('model loaded');
    });
    applier.onReport(() => {
      const now = applier.inForce?.effective.routing.capacities ?? [];
      const grown = this.capacities.length === now.length && now.some((count, layer) => count > this.capacities[layer]!);
      this.capacities = [...now];
      if (grown) this.fill('cache grown');
    });
  }

  /** The latest from the coordinator; a list that makes no sense is told in the log and changes nothing. */
  receive(list: WarmList): void {
    const { host, folder, log } = this.options;
    try {
      checkListSize(list);
      if (host.state.t === 'ready') rankedFor(list, host.state.model);
    } catch (error) {
      return log.warn({ reason: (error as Error).message, modelHash: list.modelHash.slice(0, 12) }, 'warm list refused');
    }
    this.list = list;
    try {
      folder.write(FILE, `${JSON.stringify(WarmList.toJSON(list))}\n`);
    } catch (error) {
      log.warn({ reason: (error as Error).message }, 'the warm list cannot be stored; a restart without the coordinator starts cold');
    }
    this.fill('list received');
  }

  /** Resolves when no fill is under way. */
  async idle(): Promise<void> {
    for (let seen: Promise<void> | null = null; seen !== this.working;) await (seen = this.working);
  }

  private fill(why: string): void {
    // Beside those under way: the engine ends an older one when a newer comes, and a newer one may have nothing to do.
    const before = this.working;
    this.working = this.work(why).then(() => before);
  }

  private async work(why: string): Promise<void> {
    const { host, log, now } = this.options;
    const { list } = this;
    const { state } = host;
    if (!list || state.t !== 'ready') return;
    const beganMs = now();
    try {
      const ranked = rankedFor(list, state.model);
      if (!ranked) return;
      const { done, experts, bytes, failures, lastFailure } = await host.warm(ranked);
      if (experts > 0 || failures > 0) log.info({ why, workload: list.workload, experts, bytes, tookMs: Math.round(now() - beganMs), done, ...(failures > 0 ? { failures, lastFailure } : {}) }, 'cache filled from the warm list');
    } catch (error) {
      const code = (error as { code?: unknown }).code;
      if (error instanceof HostUnavailableError || code === 'CLOSED') return;
      log.warn({ why, reason: (error as Error).message }, error instanceof WarmListError ? 'warm list refused' : 'the cache was not filled');
    }
  }

  /** What cannot be read is told in the log and left out; the coordinator sends it again. */
  private load(): WarmList | null {
    const { folder, log } = this.options;
    try {
      const text = folder.read(FILE);
      if (text === null) return null;
      const list = WarmList.fromJSON(JSON.parse(text));
      checkListSize(list);
      return list;
    } catch (error) {
      log.warn({ file: FILE, reason: (error as Error).message }, 'the stored warm list is damaged and ignored');
      return null;
    }
  }
}
