/**
 * Engine counters begin at 0 with each start of the engine host; these never fall within a boot. A start that is gone
 * counts with what was last read of it. Layers are matched by block index, so that a figure of one layer stays one
 * layer's even where another model has taken its place; only the layers of the loaded model are told.
 */
import type { EngineCounters } from '../native';

type Layer = EngineCounters['layers'][number];
/** All of a layer but its place and its gauges. */
const SUMMED = ['hits', 'misses', 'swaps', 'prefillHits', 'prefillMisses', 'massLost', 'events', 'resizeEvictions', 'pressureEvictions', 'warmFills',
  'guesses', 'guessesRight', 'guessable', 'prefetchAsked', 'prefetchReady', 'prefetchLate', 'prefetchWastedBytes'] as const;
const SCALARS = [
  'prefillTokens', 'decodeTokens', 'prefillNs', 'decodeNs', 'stallNs', 'flashBytes', 'flashReads', 'missesTotal', 'missEventsDropped',
  'resizes', 'shrinks', 'evaluationBytes', 'warmBytes',
] as const;

const ZERO: EngineCounters = {
  prefillTokens: 0, decodeTokens: 0, prefillNs: 0, decodeNs: 0, stallNs: 0, flashBytes: 0, flashReads: 0,
  missesTotal: 0, missEventsDropped: 0, resizes: 0, shrinks: 0, evaluationBytes: 0, warmBytes: 0, readMicrosLog2: [], prefetchActive: false, prefetchFitted: false, prefetchGain: 0, prefetchGainError: 0, layers: [],
};

/** `a + b`; a layer's capacity, resident and rangeMean are those of `b` where it has the layer. */
export function addCounters(a: EngineCounters, b: EngineCounters): EngineCounters {
  const layers = new Map<number, Layer>(a.layers.map((layer) => [layer.layer, layer]));
  for (const layer of b.layers) {
    const before = layers.get(layer.layer);
    const sum = { ...layer };
    if (before) for (const field of SUMMED) sum[field] += before[field];
    layers.set(layer.layer, sum);
  }
  const total: EngineCounters = {
    ...ZERO, prefetchActive: b.prefetchActive, prefetchFitted: b.prefetchFitted, prefetchGain: b.prefetchGain, prefetchGainError: b.prefetchGainError,
    readMicrosLog2: Array.from({ length: Math.max(a.readMicrosLog2.length, b.readMicrosLog2.length) }, (_, i) => (a.readMicrosLog2[i] ?? 0) + (b.readMicrosLog2[i] ?? 0)),
    layers: [...layers.values()].sort((x, y) => x.layer - y.layer),
  };
  for (const field of SCALARS) total[field] = a[field] + b[field];
  return total;
}

export class CounterSum {
  private earlier: EngineCounters = ZERO;
  private latest: EngineCounters = ZERO;
  private start = 0;

  /** Decode's selected slots since the boot began, of every layer there ever was; valid after `read`. */
  slots(): { hits: number; misses: number; swaps: number } {
    const sum = { hits: 0, misses: 0, swaps: 0 };
    for (const { hits, misses, swaps } of addCounters(this.earlier, this.latest).layers) {
      sum.hits += hits;
      sum.misses += misses;
      sum.swaps += swaps;
    }
    return sum;
  }

  /** `counters` as read from the engine host's start number `start`; null where there was no engine to ask. */
  read(start: number, counters: EngineCounters | null): EngineCounters {
    if (counters) {
      if (start !== this.start) {
        this.earlier = addCounters(this.earlier, this.latest);
        this.start = start;
      }
      this.latest = counters;
    }
    const total = addCounters(this.earlier, this.latest);
    const loaded = new Set(this.latest.layers.map((layer) => layer.layer));
    return { ...total, layers: total.layers.filter((layer) => loaded.has(layer.layer)) };
  }
}
