import { routerEntropy } from './router-entropy';

test('entropy of a router in bits, per layer: all alike, one alone, masked ones left out', () => {
  expect(routerEntropy(Float32Array.from([0, 0, 0, 0, 50, 0, 0, 0]), 2, 4)).toEqual([2, expect.closeTo(0, 6)]);
  expect(routerEntropy(Float32Array.from([3, 3, -Infinity, NaN]), 1, 4)).toEqual([1]);
  expect(routerEntropy(Float32Array.from([0, 0, 50, 0]), 1, 2)).toEqual([expect.closeTo(0.5, 6)]);
  expect(routerEntropy(new Float32Array(0), 2, 4)).toEqual([]);
});
