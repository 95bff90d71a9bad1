import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ownRange } from './domain-shift.mjs';
import { byLayer } from './eviction.mjs';
import { countUses } from './expert-use.mjs';

test('a window\'s own range is taken out of the running mean', () => {
  // Windows with ranges 4, 6, 5 in layer 0 and 1, 1, 4 in layer 1.
  const windows = [[4, 1], [5, 1], [5, 2]].map((rangeMeans) => ({ rangeMeans }));
  assert.deepEqual([0, 1, 2].map((index) => ownRange(windows, index)), [[4, 1], [6, 1], [5, 4]]);
});

test('recorded routes are put in order of layers for a replay', () => {
  // Two tokens, three layers, K = 2.
  const routes = Int32Array.from([0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]);
  assert.deepEqual([...byLayer(routes, 3, 2)], [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
});

test('uses are counted per layer, and dropped slots are none', () => {
  const routes = Int32Array.from([0, 1, 2, 2, 0, -1, 1, 2]);
  assert.deepEqual(countUses(routes, { layers: 2, topK: 2, experts: 3 }), [[2, 1, 0], [0, 1, 3]]);
});
