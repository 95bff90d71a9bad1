/** What pre-fetch did in one run of the engine, from its counters. */
import type { EngineCounters } from '@moefleet/edge-agent/engine';

export type PrefetchFigures = ReturnType<typeof prefetchFigures>;

/** Of decoded tokens; layers of which nothing was guessed, the first among them, have rates of null. */
export function prefetchFigures({ prefetchActive, prefetchFitted, prefetchGain, prefetchGainError, layers }: EngineCounters) {
  const perLayer = layers.map((layer) => ({
    layer: layer.layer, guesses: layer.guesses, right: layer.guessesRight, misses: layer.guessable, asked: layer.prefetchAsked,
    ready: layer.prefetchReady, late: layer.prefetchLate, wastedBytes: layer.prefetchWastedBytes,
    /** of all guesses, read or not */
    precision: ratio(layer.guessesRight, layer.guesses), recall: ratio(layer.guessesRight, layer.guessable),
  }));
  const recalls = perLayer.flatMap((layer) => layer.recall ?? []);
  return {
    /** tokens were decoded with pre-fetch at the end: always with `on`; with `auto`, where it pays */
    active: prefetchActive, fitted: prefetchFitted, gain: prefetchGain === 0 ? null : prefetchGain,
    /** standard error of the gain */
    gainError: prefetchGain === 0 ? null : prefetchGainError,
    recall: recalls.length ? recalls.reduce((sum, each) => sum + each, 0) / recalls.length : null,
    perLayer,
  };
}

function ratio(part: number, whole: number): number | null {
  return whole === 0 ? null : part / whole;
}
