import { pairedLoss } from './paired-loss';

test('is the mean difference and its standard error', () => {
  // Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, over the root of 3.
  const { mean, stderr } = pairedLoss([4.1, 3.2, 5.3], [4, 3, 5]);
  expect(mean).toBeCloseTo(0.2, 12);
  expect(stderr).toBeCloseTo(0.1 / Math.sqrt(3), 12);
});

test('is not disturbed by how hard each window is', () => {
  expect(pairedLoss([2.01, 9.01, 5.01], [2, 9, 5]).stderr).toBeCloseTo(0, 12);
});

test.each([[[1], [1]], [[1, 2], [1, 2, 3]], [[], []]])('refuses %j against %j', (windows, baseline) => {
  expect(() => pairedLoss(windows, baseline)).toThrow(RangeError);
});
