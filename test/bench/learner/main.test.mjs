import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

const run = (...args) => promisify(execFile)(process.execPath, [join(new URL('.', import.meta.url).pathname, 'main.mjs'), ...args]);

test('brings a small fleet nearer to its optimum, within the budget', async () => {
  const { stdout } = await run('--devices', '20', '--seeds', '1', '--proposals', '2', '--shift-proposals', '1', '--json');
  const report = JSON.parse(stdout);
  assert.ok(report.meanOfOptimum > report.beforeLearning);
  assert.ok(report.meanOfOptimum <= 1 && report.budgetKept >= 0.95);
  assert.equal(report.course.length, 2);
});

test('a class of nothing but liars does no other class any harm', async () => {
  const { stdout } = await run('--devices', '60', '--seeds', '1', '--proposals', '3', '--shift-proposals', '1', '--lying-class', 'minipc', '--json');
  const report = JSON.parse(stdout);
  assert.deepEqual(Object.keys(report.byClass), ['card', 'jetson', 'phone']);
  assert.ok(report.liars >= 10);
  for (const harm of Object.values(report.harmByClass)) assert.ok(Math.abs(harm) < 0.005, `${harm}`);
  await assert.rejects(run('--lying-class', 'toaster'), ({ code, stderr }) => code === 2 && /"toaster" is none of jetson/.test(stderr));
});

test('tells its flags, and refuses others', async () => {
  assert.match((await run('--help')).stdout, /^Judges the learner on a simulated fleet.*--first-seed/s);
  await assert.rejects(run('--nonsense'), ({ code, stderr }) => code === 2 && /--nonsense.*see --help/.test(stderr));
});
