/**
 * Runs a record under other settings and makes a row of figures of each. The decisions are the engine's own code
 * (native/engine/replay.cpp); what is here picks the cheapest way to ask, and adds up.
 *
 * LRU at the model's own choice comes for all capacities from one pass (native/engine/lru-curve.cpp), which gives exactly
 * what a replay of each would.
 */
import { lruCurve, type LruCurveLayer, type ReplayedLayer, replay as replayTrace, type RouteTrace } from '@moefleet/edge-agent/engine';
import { type Band, type Changed, errorBand } from './error-band';
import { recordedWhatIf } from './recorded-spec';
import { type TokenCost, tokensPerSecond } from './speed';
import type { Trace } from './trace';
import { bendsNothing, type Setting, whatIfOf } from './what-if';

export interface Rates { missRate: number; swapRate: number; dropRate: number; massLost: number; meanLifetimeTokens: number | null; }

export interface ReplayRow extends Setting, Rates {
  /** counted: hits, misses and dropped */
  slots: number;
  misses: number;
  missesPerToken: number;
  /** of the miss rate; null where nothing separates the record from the setting, so that the figure is exact */
  missRateBand: Band | null;
  /** null without a cost */
  tokensPerSecond: number | null;
  perLayer: ({ layer: number; slots: number; misses: number } & Rates)[];
}

export interface ReplayOptions {
  /** tokens that only fill the caches */
  uncountedTokens?: number;
  cost?: TokenCost | null;
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

/** Rows in the order of `settings`. Throws what the engine throws of a trace that makes no sense (BadArgumentError). */
export async function replay(trace: Trace, settings: readonly Setting[], options: ReplayOptions = {}): Promise<ReplayRow[]> {
  const counts = await countsOf(trace, settings, options);
  const recorded = await changedWhenRecorded(trace);
  return settings.map((setting, i) => {
    const row = rowOf(trace, setting, counts[i]!, options.cost ?? null);
    return { ...row, missRateBand: errorBand(trace, recorded, setting, row) };
  });
}

/** Under what was in force then; null where that is not known. */
async function changedWhenRecorded(trace: Trace): Promise<Changed | null> {
  if (!trace.bent) return { swapRate: 0, dropRate: 0 };
  const whatIf = trace.recorded && recordedWhatIf(trace.recorded);
  if (!whatIf) return null;
  const [layers] = await replayTrace({ ...recordOf(trace), whatIfs: [whatIf] });
  return ratesOf(sumOf(layers!));
}

function recordOf({ experts, topK, layerEvents, routes, scores, rows, rowsMask, changes }: Trace): RouteTrace {
  return { experts, topK, layerEvents, routes, scores, rows, rowsMask, changes };
}

async function countsOf(trace: Trace, settings: readonly Setting[], { uncountedTokens = 0, onProgress, signal }: ReplayOptions): Promise<ReplayedLayer[][]> {
  const { layerEvents, changes } = trace;
  const recorded = { ...recordOf(trace), uncountedTokens };
  const onCurve = settings.map((setting) => setting.policy === 'lru' && bendsNothing(setting) && !changes?.length);
  const others = settings.filter((_, i) => !onCurve[i]);
  const curve = onCurve.includes(true) ? await lruCurve(recorded) : [];
  // A call without what-ifs would still copy the record and find the model's own choices.
  const rest = others.length === 0 ? [] : await replayTrace({ ...recorded, whatIfs: others.map((setting) => whatIfOf(setting, layerEvents.length)) }, (done, total) => {
    signal?.throwIfAborted();
    onProgress?.(done / total);
  });
  return settings.map((setting, i) => (onCurve[i] ? curve.map((layer, l) => atCapacity(layer, setting.capacity, layerEvents[l]! - uncountedTokens)) : rest.shift()!));
}

function atCapacity({ references, misses, evictions, lifetimeTokens }: LruCurveLayer, capacity: number, events: number): ReplayedLayer {
  return {
    events: Math.max(0, events), hits: references - misses[capacity]!, misses: misses[capacity]!, swaps: 0, dropped: 0, massLost: 0,
    evictions: evictions[capacity]!, lifetimeTokens: lifetimeTokens[capacity]!,
  };
}

function rowOf(trace: Trace, setting: Setting, layers: readonly ReplayedLayer[], cost: TokenCost | null): Omit<ReplayRow, 'missRateBand'> {
  const total = sumOf(layers);
  const rates = ratesOf(total);
  // Layers may have seen different numbers of tokens; misses of one token are those of one event in each.
  const missesPerToken = layers.reduce((sum, { misses, events }) => sum + (events > 0 ? misses / events : 0), 0);
  return {
    ...setting, ...rates, slots: slotsOf(total), misses: total.misses, missesPerToken,
    tokensPerSecond: cost ? tokensPerSecond(cost, missesPerToken) : null,
    perLayer: layers.map((counts, i) => ({ layer: trace.layers[i]!, slots: slotsOf(counts), misses: counts.misses, ...ratesOf(counts) })),
  };
}

function sumOf(layers: readonly ReplayedLayer[]): ReplayedLayer {
  const sum = { events: 0, hits: 0, misses: 0, swaps: 0, dropped: 0, massLost: 0, evictions: 0, lifetimeTokens: 0 };
  for (const layer of layers) for (const name of Object.keys(sum) as (keyof ReplayedLayer)[]) sum[name] += layer[name];
  return sum;
}

function slotsOf({ hits, misses, dropped }: ReplayedLayer): number {
  return hits + misses + dropped;
}

function ratesOf(counts: ReplayedLayer): Rates {
  const slots = Math.max(1, slotsOf(counts));
  return {
    missRate: counts.misses / slots, swapRate: counts.swaps / slots, dropRate: counts.dropped / slots, massLost: counts.massLost / Math.max(1, counts.events),
    meanLifetimeTokens: counts.evictions > 0 ? counts.lifetimeTokens / counts.evictions : null,
  };
}
