import { median, pairedRatios, spread } from './statistics';

test('the median of an even count is the mean of the middle two', () => {
  expect(median([9, 1, 5])).toBe(5);
  expect(median([4, 1, 3, 10])).toBe(3.5);
  expect(median([])).toBeNaN();
});

test('a spread has both ends, and nothing has none', () => {
  expect(spread([3, 1, 8])).toEqual({ median: 3, min: 1, max: 8 });
  expect(spread([])).toBeNull();
});

test('ratios are taken within a run, and runs without a partner are left out', () => {
  expect(pairedRatios([10, null, 30, 8, 5], [5, 4, null, 2, 0])).toEqual([2, 4]);
  expect(pairedRatios([1, 2], [4])).toEqual([0.25]);
});
