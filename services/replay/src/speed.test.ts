import { costOfCounters, tokensPerSecond } from './speed';

test('the cost of a token and of a miss give back the speed they came from', () => {
  const cost = costOfCounters({ decodeTokens: 100, decodeNs: 5e9, stallNs: 4e9, misses: 600, prefillMisses: 200 })!;
  expect(cost.missMs).toBe(5);
  expect(cost.computeMs).toBeCloseTo(20, 9);
  expect(tokensPerSecond(cost, 6)).toBeCloseTo(20, 9);
  expect(tokensPerSecond(cost, 0)).toBeCloseTo(50, 9);
});

test.each([
  { decodeTokens: 0, decodeNs: 0, stallNs: 0, misses: 0, prefillMisses: 0 }, { decodeTokens: 5, decodeNs: 1e9, stallNs: 0, misses: 0, prefillMisses: 4 },
  { decodeTokens: 5, decodeNs: 1e6, stallNs: 1e9, misses: 5, prefillMisses: 0 }, { decodeTokens: 5, decodeNs: NaN, stallNs: NaN, misses: 5, prefillMisses: 0 },
])('counters that say nothing of it give no cost: %j', (counters) => {
  expect(costOfCounters(counters)).toBeNull();
});
