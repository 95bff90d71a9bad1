import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evenness, gini, pairedLoss, paretoFront, standardError, topShare } from './statistics.mjs';

test('Gini is 0 for equal use, and nears 1 where one expert takes all', () => {
  assert.equal(gini([5, 5, 5, 5]), 0);
  assert.ok(Math.abs(gini([0, 0, 0, 8]) - 0.75) < 1e-12);
  assert.ok(Math.abs(gini([1, 3]) - 0.25) < 1e-12);
  assert.equal(gini([3, 1]), gini([1, 3]));
  assert.equal(gini([0, 0]), 0);
});

test('evenness and top shares are of all uses', () => {
  assert.equal(evenness([2, 2, 2, 2]), 1);
  assert.ok(Math.abs(evenness([9, 0, 0, 0])) < 1e-12);
  assert.ok(evenness([8, 1, 1, 1]) < 1);
  assert.equal(topShare([1, 5, 2, 2], 2), 0.7);
  assert.equal(topShare([0, 0], 1), 0);
});

test('a loss compares each window with itself', () => {
  const own = [400, 800, 600];
  const { nats, stderr, percent } = pairedLoss(own.map((nll) => nll + 2), own, 100);
  assert.ok(Math.abs(nats - 0.02) < 1e-12);
  assert.ok(stderr < 1e-12);
  assert.ok(Math.abs(percent - 100 * Math.expm1(0.02)) < 1e-9);
  assert.equal(pairedLoss([410], [400], 100).stderr, null);
  assert.throws(() => pairedLoss([1], [1, 2], 100), /windows differ/);
});

test('a single value has no standard error', () => {
  assert.equal(standardError([3]), null);
  assert.equal(standardError([1, 3]), 1);
});

test('the front holds what nothing else beats on both', () => {
  const points = [[5, 0], [1, 9], [3, 4], [4, 4], [2, 10]];
  assert.deepEqual(paretoFront(points, ([x]) => x, ([, y]) => y), [[1, 9], [3, 4], [5, 0]]);
});
