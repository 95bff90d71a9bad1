/** The program as a user runs it, on the reference model with few tokens; needs the built engine. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';

const program = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, 'main.mjs');
const folder = mkdtempSync(join(tmpdir(), 'reproduce-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const run = (...args) => new Promise((resolve) => {
  execFile(process.execPath, [program, ...args], { encoding: 'utf8', maxBuffer: 1 << 26 }, (error, stdout, stderr) => resolve({ code: error?.code ?? 0, stdout, stderr }));
});
const write = (path, text) => {
  mkdirSync(join(folder, path, '..'), { recursive: true });
  writeFileSync(join(folder, path), text);
};

test('measures tables, writes figures, plots and pages, and goes on where it was', async () => {
  write('gsm8k/train.jsonl', '{"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = 5.\\n#### 5"}\n');
  write('gsm8k/test.jsonl', '{"question": "Tom has 4 cups and breaks 1. How many are left?", "answer": "4 - 1 = 3.\\n#### 3"}\n');
  write('mmlu/dev/sums_dev.csv', 'What is 1 + 1?,1,2,3,4,B\n');
  write('mmlu/test/sums_test.csv', 'What is 2 + 2?,1,2,3,4,D\n"Which, of these, is red?",a cherry,the sea,grass,snow,A\n');
  const args = ['--tokens', '512', '--only', 'lifetime,eviction,expert-use,prefill-bias,gsm8k,mmlu', '--gsm8k', join(folder, 'gsm8k'), '--mmlu', join(folder, 'mmlu'), '--out', join(folder, 'out'), '--json'];
  const first = await run(...args);
  assert.equal(first.code, 0, first.stderr);
  const [{ model, tables }] = JSON.parse(first.stdout);
  assert.deepEqual(tables.map(({ table }) => table), ['lifetime', 'eviction', 'prefill-bias', 'expert-use', 'gsm8k', 'mmlu']);
  const of = (name) => tables.find(({ table }) => table === name);

  const evictions = of('eviction').rows.filter(({ source, capacity }) => source === 'wikitext' && capacity === 16);
  const rate = (policy) => evictions.find((row) => row.policy === policy).missRate;
  assert.ok(rate('belady') < rate('lfu') && rate('lfu') < rate('lru'));
  // The replay counts what the evaluation itself counted.
  assert.equal(rate('lru'), of('lifetime').rows.find(({ strategy, eviction }) => strategy.includes('λ 0,') && eviction === 'lru').missRate);
  for (const { counts } of of('expert-use').rows) assert.equal(counts.reduce((sum, count) => sum + count, 0), 512 * 4);
  for (const row of of('prefill-bias').rows) {
    assert.ok(row.both.promptMisses < row.ownPromptMisses && row.decode.missRate < row.ownMissRate);
  }
  assert.equal(of('gsm8k').rows.length, 3);
  assert.ok(of('mmlu').rows.every(({ correct, tooLong }) => correct.length === 2 && tooLong === 0));

  const page = readFileSync(join(folder, 'out', model, 'README.md'), 'utf8');
  for (const [, image] of page.matchAll(/\]\(([\w-]+\.svg)\)/g)) assert.match(readFileSync(join(folder, 'out', model, image), 'utf8'), /^<svg .*<\/svg>\n$/s);
  assert.match(readFileSync(join(folder, 'out', 'README.md'), 'utf8'), /expert lifetimes/);

  const second = await run(...args);
  assert.equal(second.stdout, first.stdout);
  assert.match(second.stderr, / 0 cells measured, \d+ found/);
});

test('says what is wrong with its arguments, and what there is instead', async () => {
  for (const [args, said] of [
    [['--only', 'nothing'], /no table 'nothing'; there are rank-cost/], [['--tokens', '1.5'], /--tokens: expected a whole number from 1, found '1\.5'/],
    [['--texts', join(folder, 'none')], /--texts: no folder/], [['--nonsense'], /--nonsense/],
  ]) {
    const { code, stderr } = await run(...args);
    assert.equal(code, 2);
    assert.match(stderr, said);
  }
  write('broken.gguf', 'GGUF');
  const broken = await run('--model', join(folder, 'broken.gguf'), '--out', join(folder, 'broken'));
  assert.equal(broken.code, 1);
  assert.match(broken.stderr, /broken\.gguf/);
  assert.doesNotMatch(broken.stderr, /\n {4}at /);
});
