import type { EngineCounters } from '../native';
import { CounterSum } from './counter-sum';

function counters(n: number, layers = [0, 1]): EngineCounters {
  return {
    prefillTokens: n, decodeTokens: n, prefillNs: n, decodeNs: n, stallNs: n, flashBytes: n, flashReads: n, missesTotal: n, missEventsDropped: n, resizes: n, shrinks: n, evaluationBytes: n, warmBytes: n,
    readMicrosLog2: [n, 0, n], prefetchActive: false, prefetchFitted: false, prefetchGain: 0, prefetchGainError: 0,
    layers: layers.map((layer) => ({ layer, capacity: n, resident: n, hits: n, misses: n, swaps: n, prefillHits: n, prefillMisses: n, massLost: n / 2, events: n, rangeMean: n, resizeEvictions: n, pressureEvictions: n, warmFills: n, guesses: n, guessesRight: n, guessable: n, prefetchAsked: n, prefetchReady: n, prefetchLate: n, prefetchWastedBytes: n })),
  };
}

test('figures never fall within a boot, whatever starts and ends', () => {
  const sum = new CounterSum();
  expect(sum.read(1, counters(5)).decodeTokens).toBe(5);
  expect(sum.read(1, counters(8)).decodeTokens).toBe(8);
  expect(sum.read(1, null).decodeTokens).toBe(8);
  expect(sum.read(2, null).decodeTokens).toBe(8);
  expect(sum.read(2, counters(0)).decodeTokens).toBe(8);
  const total = sum.read(2, counters(3));
  expect(total).toMatchObject({ decodeTokens: 11, flashBytes: 11, missesTotal: 11, readMicrosLog2: [11, 0, 11] });
  expect(total.layers[1]).toEqual({ layer: 1, capacity: 3, resident: 3, hits: 11, misses: 11, swaps: 11, prefillHits: 11, prefillMisses: 11, massLost: 5.5, events: 11, rangeMean: 3, resizeEvictions: 11, pressureEvictions: 11, warmFills: 11, guesses: 11, guessesRight: 11, guessable: 11, prefetchAsked: 11, prefetchReady: 11, prefetchLate: 11, prefetchWastedBytes: 11 });
  expect(sum.read(3, counters(1)).decodeTokens).toBe(12);
});

test('reading twice adds nothing', () => {
  const sum = new CounterSum();
  sum.read(1, counters(5));
  expect(sum.read(1, counters(5))).toEqual(sum.read(1, counters(5)));
});

test('tells the layers of the loaded model only', () => {
  const sum = new CounterSum();
  sum.read(1, counters(5, [0, 1, 2]));
  expect(sum.read(2, counters(1, [1])).layers.map(({ layer, hits }) => [layer, hits])).toEqual([[1, 6]]);
  expect(sum.read(3, counters(1, [0, 1, 2])).layers.map(({ hits }) => hits)).toEqual([6, 7, 6]);
});

test('before any engine there are zeros', () => {
  expect(new CounterSum().read(0, null)).toMatchObject({ decodeTokens: 0, layers: [], readMicrosLog2: [] });
});
