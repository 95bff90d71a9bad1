import assert from 'node:assert/strict';
import { test } from 'node:test';
import { plot, ticks } from './svg-plot.mjs';

test('ticks are round and cover the range', () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(ticks(-7, 23, 6), [-5, 0, 5, 10, 15, 20]);
  assert.deepEqual(ticks(3, 3), [3]);
});

const attribute = (svg, pattern) => [...svg.matchAll(pattern)].map((match) => Number(match[1]));

test('a larger value is further right and higher up, inside the frame', () => {
  const svg = plot({ title: 't', xLabel: 'x', yLabel: 'y', series: [{ name: 'one', points: [[0, 1], [10, 2], [20, 4]] }] });
  const [xs, ys] = [attribute(svg, /circle cx="([\d.]+)"/g).slice(0, 3), attribute(svg, /circle cx="[\d.]+" cy="([\d.]+)"/g).slice(0, 3)];
  assert.deepEqual([...xs].sort((a, b) => a - b), xs);
  assert.deepEqual([...ys].sort((a, b) => b - a), ys);
  assert.ok(xs.every((x) => x >= 64 && x <= 696) && ys.every((y) => y >= 40 && y <= 372));
});

test('a logarithmic axis gives decades equal room, and leaves out what it cannot show', () => {
  const svg = plot({ title: 't', xLabel: 'x', yLabel: 'y', yLog: true, series: [{ name: 'one', points: [[0, 0.1], [1, 1], [2, 10], [3, 0], [4, -1]] }] });
  const ys = attribute(svg, /circle cx="[\d.]+" cy="([\d.]+)"/g).slice(0, -1);
  assert.equal(ys.length, 3);
  assert.ok(Math.abs(ys[0] - ys[1] - (ys[1] - ys[2])) < 0.2);
});

test('text is escaped, and every series is in the legend', () => {
  const svg = plot({ title: 'a < b & "c"', xLabel: 'λ', yLabel: 'y', series: [{ name: 'p>q', points: [[1, 1]] }, { name: 'second', line: false, points: [[1, 2, 0.5]] }] });
  assert.match(svg, /a &lt; b &amp; &quot;c&quot;/);
  assert.match(svg, /p&gt;q/);
  assert.match(svg, />second</);
  assert.doesNotMatch(svg, /NaN|undefined/);
});

test('no data is said, not drawn', () => {
  assert.match(plot({ title: 't', xLabel: 'x', yLabel: 'y', series: [{ name: 'none', points: [[NaN, 1]] }] }), />no data</);
});
