import { bytesOfCapacities, capacitiesForBytes } from './capacity-plan';
import { BadArgumentError, CapacityError } from './engine-error';

const even = { moeLayers: [0, 1, 2], experts: 32, topK: 4, expertBytes: [100, 100, 100] };

test('splits bytes evenly over layers of one size', () => {
  expect(capacitiesForBytes(even, 2400)).toEqual([8, 8, 8]);
  expect(capacitiesForBytes(even, 2599)).toEqual([9, 8, 8]);
});

test('gives layers of larger experts fewer of them', () => {
  const info = { ...even, expertBytes: [100, 200, 400] };
  const capacities = capacitiesForBytes(info, 7200);
  expect(capacities).toEqual([24, 12, 6]);
  expect(bytesOfCapacities(info, capacities)).toBe(7200);
});

test('never exceeds the budget, nor the layer, and uses what fits', () => {
  const info = { ...even, expertBytes: [70, 130, 310] };
  for (const budget of [2040, 2500, 5555, 9001, 16319, 99999]) {
    const capacities = capacitiesForBytes(info, budget);
    const used = bytesOfCapacities(info, capacities);
    expect(used).toBeLessThanOrEqual(budget);
    capacities.forEach((capacity, layer) => {
      expect(capacity).toBeGreaterThanOrEqual(4);
      expect(capacity).toBeLessThanOrEqual(32);
      if (capacity < 32) expect(budget - used).toBeLessThan(info.expertBytes[layer]!);
    });
  }
  expect(capacitiesForBytes(info, Number.MAX_SAFE_INTEGER)).toEqual([32, 32, 32]);
});

test('refuses less than one token needs, with the arithmetic', () => {
  expect(capacitiesForBytes(even, 1200)).toEqual([4, 4, 4]);
  expect(() => capacitiesForBytes(even, 1199)).toThrow(CapacityError);
  expect(() => capacitiesForBytes(even, 1199)).toThrow(/1199 bytes .* top-4 experts of 3 layers are 1200 bytes/);
  expect(() => capacitiesForBytes(even, Number.NaN)).toThrow(CapacityError);
});

test('refuses a list of another length', () => {
  expect(() => bytesOfCapacities(even, [4, 4])).toThrow(BadArgumentError);
});
