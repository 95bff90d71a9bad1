import fc from 'fast-check';
import { type MissCurve, splitBytes } from './layer-split';
import { bytesOfCapacities, type ModelShape } from './setting';

const SHAPE: ModelShape = { experts: 12, topK: 2, expertBytes: [10, 10, 20] };
const curve = (at: (capacity: number) => number): MissCurve => Array.from({ length: 11 }, (_, i) => ({ capacity: i + 2, missRate: i === 10 ? 0 : at(i + 2) }));

test('gives bytes to the layer where they save the most, and no more than there are', () => {
  const steep = curve((capacity) => 0.9 * 0.6 ** capacity);
  const flat = curve((capacity) => 0.04 - 0.004 * (capacity - 2));
  const split = splitBytes(SHAPE, [steep, flat, flat], 200)!;
  expect(split[0]).toBeGreaterThan(split[1]!);
  expect(bytesOfCapacities(SHAPE, split)).toBeLessThanOrEqual(200);
});

test('bridges a dent: a layer that gains nothing until it holds eight is given eight, or nothing', () => {
  const cliff = curve((capacity) => (capacity >= 8 ? 0.05 : 0.9));
  const slow = curve((capacity) => 0.5 - 0.03 * capacity);
  expect(splitBytes({ ...SHAPE, expertBytes: [10, 10] }, [cliff, slow], 100)).toEqual([8, 2]);
});

test('below one token cycle, or without a curve for each layer, there is no split', () => {
  const any = curve(() => 0.5);
  expect(splitBytes(SHAPE, [any, any, any], 79)).toBeNull();
  expect(splitBytes(SHAPE, [any, any], 200)).toBeNull();
  expect(splitBytes(SHAPE, [any, [], any], 200)).toBeNull();
});

test('on convex curves no other split of the same bytes misses less', () => {
  const shape: ModelShape = { experts: 8, topK: 2, expertBytes: [1, 1, 1] };
  const convex = fc.tuple(fc.double({ min: 0.1, max: 1, noNaN: true }), fc.double({ min: 0.3, max: 0.95, noNaN: true }))
    .map(([top, falls]): MissCurve => Array.from({ length: 7 }, (_, i) => ({ capacity: i + 2, missRate: top * (falls ** i - falls ** 6) })));
  fc.assert(fc.property(fc.array(convex, { minLength: 3, maxLength: 3 }), fc.integer({ min: 6, max: 24 }), (curves, bytes) => {
    const misses = (capacities: readonly number[]) => capacities.reduce((sum, capacity, layer) => sum + curves[layer]![capacity - 2]!.missRate, 0);
    const split = splitBytes(shape, curves, bytes)!;
    for (let a = 2; a <= 8; a += 1) for (let b = 2; b <= 8; b += 1) {
      const c = Math.min(bytes - a - b, 8);
      if (c >= 2) expect(misses(split)).toBeLessThanOrEqual(misses([a, b, c]) + 1e-9);
    }
  }));
});
