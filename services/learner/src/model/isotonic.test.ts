import fc from 'fast-check';
import { isotonic } from './isotonic';

test('leaves what rises, and pools what falls by its weights', () => {
  expect(isotonic([1, 2, 3], [1, 1, 1])).toEqual([1, 2, 3]);
  expect(isotonic([1, 4, 2, 5], [1, 3, 1, 1])).toEqual([1, 3.5, 3.5, 5]);
  expect(isotonic([], [])).toEqual([]);
});

test('never falls, keeps the weighted sum, and is no further from the values than any rising sequence', () => {
  const values = fc.array(fc.tuple(fc.double({ min: -5, max: 5, noNaN: true }), fc.double({ min: 0.1, max: 10, noNaN: true })), { minLength: 1, maxLength: 12 });
  fc.assert(fc.property(values, fc.array(fc.double({ min: 0, max: 3, noNaN: true }), { minLength: 12, maxLength: 12 }), fc.double({ min: -5, max: 0, noNaN: true }), (pairs, steps, from) => {
    const given = pairs.map(([value]) => value);
    const weights = pairs.map(([, weight]) => weight);
    const fitted = isotonic(given, weights);
    const distance = (sequence: readonly number[]) => sequence.reduce((sum, value, i) => sum + weights[i]! * (value - given[i]!) ** 2, 0);
    fitted.slice(1).forEach((value, i) => expect(value).toBeGreaterThanOrEqual(fitted[i]! - 1e-9));
    expect(fitted.reduce((sum, value, i) => sum + weights[i]! * (value - given[i]!), 0)).toBeCloseTo(0, 6);
    let other = from;
    const rising = given.map((_, i) => (other += steps[i]!));
    expect(distance(fitted)).toBeLessThanOrEqual(distance(rising) + 1e-9);
  }));
});
