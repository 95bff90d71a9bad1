/**
 * Takes in what devices report of their experts' use, and says which warm list a device is to have. Reports that count
 * are summed here for a few seconds and then added to the registry, so that many devices cost it few writes; a list is
 * read from it at most every LIST_AGE_MS and changes, for devices, only when it has shifted. What waits is bounded; while
 * Redis is away reports are shed, which costs a list nothing but them.
 */
import type { ExpertUse, WarmList } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';
import type { WarmStore } from '../registry/warm-store';
import { addContribution, contributionOf, type Contribution, MOST_CELLS, mergeProfiles, rankExperts, type Shape, shiftBetween } from './warm-profile';

export interface WarmModel extends Shape { hash: string; topK: number }

export interface WarmReporter { deviceId: string; bootId: string; workload: string; model: WarmModel }

export interface WarmExchangeOptions {
  /** between a device's reports; 0: warm lists are off */
  intervalMs: number;
  now?: () => number;
}

/** `version` differs where the list has shifted; counts within this coordinator. */
export interface CurrentList { version: number; reports: number; ranked: number[][] }

interface Waiting { modelHash: string; workload: string; sum: Contribution }
/** `ranked` is empty where there was nothing to be read. */
interface Kept extends CurrentList { readMs: number }

const FLUSH_EVERY_MS = 5_000;
const LIST_AGE_MS = 10_000;
/** Of models times workloads, for each of which some 100 KiB may wait or be kept here. */
const MOST_KEPT = 128;
/** Of the better half of the experts: less is not worth a message. */
const SHIFTED = 0.05;
const MOST_TOLD = 1000;

export class WarmExchange {
  private readonly waiting = new Map<string, Waiting>();
  private readonly lists = new Map<string, Kept>();
  private readonly reading = new Map<string, Promise<CurrentList | null>>();
  private readonly told = new Set<string>();
  private readonly now: () => number;
  private timer: NodeJS.Timeout | undefined;
  private flushing: Promise<void> = Promise.resolve();
  private versions = 0;

  constructor(private readonly store: WarmStore, private readonly options: WarmExchangeOptions, private readonly metrics: Metrics, private readonly log: Logger) {
    this.now = options.now ?? Date.now;
  }

  get intervalMs(): number {
    return this.options.intervalMs;
  }

  /** Whether the report counts. Never rejects. */
  async take(reporter: WarmReporter, use: ExpertUse): Promise<boolean> {
    if (this.intervalMs === 0 || use.modelHash !== reporter.model.hash) return this.count('refused');
    const contribution = contributionOf(use, reporter.model);
    if ('refused' in contribution) return this.refuse(reporter, contribution.refused);
    try {
      // Devices jitter their reports: half of the interval between two is early, not false.
      const outcome = await this.store.admit(reporter.deviceId, reporter.bootId, use.sequence, this.now(), this.intervalMs / 2);
      if (outcome !== 'counted') return this.count(outcome === 'duplicate' ? 'duplicate' : 'too_soon');
      this.put(reporter, contribution);
      return true;
    } catch (error) {
      if (!(error instanceof RegistryUnavailableError)) this.log.error({ err: error, deviceId: reporter.deviceId }, 'a report of expert use cannot be counted');
      return this.count('shed');
    }
  }

  /** null: nothing is known of the model, or Redis is away. */
  async current(model: WarmModel, workload: string): Promise<CurrentList | null> {
    if (this.intervalMs === 0 || model.hash === '' || model.layers * model.experts === 0 || model.layers * model.experts > MOST_CELLS) return null;
    const key = keyOf(model, workload);
    const kept = this.lists.get(key);
    if (kept && this.now() - kept.readMs < Math.min(LIST_AGE_MS, this.intervalMs)) return orNothing(kept);
    const reading = this.reading.get(key) ?? this.read(key, model, workload, kept ?? null).finally(() => this.reading.delete(key));
    this.reading.set(key, reading);
    return reading;
  }

  /** Adds what waits to the registry; resolves when that is done. */
  async drain(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.flushing = this.flushing.then(() => this.flush());
    await this.flushing;
  }

  private put({ workload, model }: WarmReporter, contribution: Contribution): void {
    const key = keyOf(model, workload);
    const known = this.waiting.get(key);
    if (!known && this.waiting.size >= MOST_KEPT) return void this.count('shed');
    if (known) addContribution(known.sum, contribution);
    else this.waiting.set(key, { modelHash: model.hash, workload, sum: contribution });
    this.count('counted');
    this.timer ??= setTimeout(() => void this.drain(), Math.min(FLUSH_EVERY_MS, this.intervalMs));
  }

  private async flush(): Promise<void> {
    const all = [...this.waiting.values()];
    this.waiting.clear();
    for (const { modelHash, workload, sum } of all) {
      try {
        if (await this.store.add(modelHash, workload, sum, this.now())) this.forgetNothing();
        else this.log.warn({ modelHash, workload }, 'expert use is not kept: the registry holds that of as many other models as it may');
      } catch (error) {
        this.count('shed');
        if (!(error instanceof RegistryUnavailableError)) this.log.error({ err: error, modelHash, workload }, 'expert use cannot be added');
      }
    }
  }

  private async read(key: string, model: WarmModel, workload: string, kept: Kept | null): Promise<CurrentList | null> {
    const nowMs = this.now();
    let list: Kept = { version: 0, reports: 0, ranked: [], ...kept, readMs: nowMs };
    try {
      const profiles = await this.store.profiles(model.hash, model);
      const fleet = mergeProfiles(model, [...profiles.values()], nowMs);
      const own = profiles.get(workload);
      const ranked = fleet.reports > 0 ? rankExperts(own ? mergeProfiles(model, [own], nowMs) : null, fleet) : [];
      if (ranked.length > 0 && (list.ranked.length === 0 || shiftBetween(list.ranked, ranked) > SHIFTED)) list = { version: this.versions += 1, reports: fleet.reports, ranked, readMs: nowMs };
    } catch (error) {
      if (!(error instanceof RegistryUnavailableError)) this.log.error({ err: error, modelHash: model.hash }, 'the warm list cannot be read');
    }
    if (!this.lists.has(key) && this.lists.size >= MOST_KEPT) this.lists.delete(this.lists.keys().next().value!);
    this.lists.set(key, list);
    return orNothing(list);
  }

  /** There is something to be read now. */
  private forgetNothing(): void {
    for (const [key, { ranked }] of this.lists) if (ranked.length === 0) this.lists.delete(key);
  }

  private refuse({ deviceId }: WarmReporter, reason: string): false {
    if (this.told.size >= MOST_TOLD) this.told.clear();
    if (!this.told.has(deviceId)) {
      this.told.add(deviceId);
      this.log.warn({ deviceId, reason }, 'a report of expert use is refused: it cannot be true');
    }
    return this.count('refused');
  }

  private count(outcome: string): false {
    this.metrics.expertUse.inc({ outcome });
    return false;
  }
}

/** As it is sent: no longer than the device has room for, where it has said so. */
export function warmListOf({ reports, ranked }: CurrentList, modelHash: string, workload: string, maxCapacities: readonly number[]): WarmList {
  return { modelHash, workload, reports, layers: ranked.map((experts, i) => ({ experts: maxCapacities.length === ranked.length ? experts.slice(0, maxCapacities[i]) : experts })) };
}

function orNothing(list: Kept): CurrentList | null {
  return list.ranked.length > 0 ? list : null;
}

function keyOf(model: WarmModel, workload: string): string {
  return `${model.hash}:${model.layers}x${model.experts}|${workload}`;
}
