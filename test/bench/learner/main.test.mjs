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

test('tells its flags, and refuses others', async () => {
  assert.match((await run('--help')).stdout, /^Judges the learner on a simulated fleet.*--first-seed/s);
  await assert.rejects(run('--nonsense'), ({ code, stderr }) => code === 2 && /--nonsense.*see --help/.test(stderr));
});
