/** MMLU: likelihood of the answer's letter behind worked examples, under rising λ. The examples are a prompt, the question is bent. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { percent, signed, table } from '../markdown.mjs';
import { LETTERS, mmluPrompt, parseMmlu } from '../mmlu.mjs';
import { mean, standardError, sum, Z95 } from '../statistics.mjs';

export const name = 'mmlu';
export const title = 'MMLU';
const LAMBDAS = [0, 0.1, 0.3, 1];
const DEFAULT_SHOTS = 5;
const MOST_CONTEXT_TOKENS = 4096;
const TEST_FILE = /^(.+)_test\.csv$/;

/** Questions of all subjects in turn, with their examples. */
function readItems(folder, shots, most) {
  const subjects = readdirSync(join(folder, 'test')).map((file) => TEST_FILE.exec(file)?.[1]).filter(Boolean).sort();
  if (subjects.length === 0) throw new Error(`--mmlu ${folder}: no test/<subject>_test.csv in it`);
  const read = (part, subject) => { const path = join(folder, part, `${subject}_${part}.csv`); return parseMmlu(readFileSync(path, 'utf8'), path); };
  const bySubject = subjects.map((subject) => ({ subject, examples: read('dev', subject).slice(0, shots), questions: read('test', subject) }));
  const items = [];
  for (let i = 0; items.length < most && bySubject.some(({ questions }) => i < questions.length); i += 1) {
    for (const { subject, examples, questions } of bySubject) {
      if (i < questions.length && items.length < most) items.push({ subject, examples, ...questions[i] });
    }
  }
  return items;
}

/** Ids of the question behind as many examples as fit, and of each answer behind both. */
function fittingIds(bench, item, room) {
  for (let shots = item.examples.length; shots >= 0; shots -= 1) {
    const { examples, question } = mmluPrompt(item.subject, item.examples.slice(0, shots), item);
    const ids = (text) => [...bench.engine.tokenize(text, true, false)];
    const answers = LETTERS.map((letter) => ids(`${examples}${question} ${letter}`));
    if (Math.max(...answers.map(({ length }) => length)) <= room) return { examples: ids(examples).length, question: ids(examples + question).length, answers, shots };
  }
  return null;
}

/** Nats of each answer, per token of it. */
async function answerNll(bench, { examples, question, answers }, spec) {
  const nll = [];
  for (const ids of answers) {
    const context = ids.length - 1;
    const promptTokens = Math.min(examples, question - 1);
    const { tokenNll } = await bench.evaluate(Int32Array.from(ids), spec, { context, promptTokens });
    const tail = tokenNll.slice(question - 1 - promptTokens);
    nll.push(sum([...tail]) / tail.length);
  }
  return nll;
}

export async function measure(bench, options) {
  if (options.mmlu === null) return null;
  const items = readItems(options.mmlu, options.shots ?? DEFAULT_SHOTS, options.items);
  const room = Math.min(bench.info.contextTrain, MOST_CONTEXT_TOKENS);
  const rows = [];
  for (const lambda of LAMBDAS) {
    const spec = bench.spec({ lambda, topJ: Math.min(2, bench.info.topK) });
    const row = { lambda, correct: [], fewestShots: Infinity, tooLong: 0 };
    for (const item of items) {
      const ids = fittingIds(bench, item, room);
      row.tooLong += Number(ids === null);
      row.fewestShots = Math.min(row.fewestShots, ids?.shots ?? Infinity);
      const nll = ids && await bench.cell({ what: 'mmlu', answers: ids.answers, examples: ids.examples, question: ids.question, spec }, () => answerNll(bench, ids, spec));
      row.correct.push(Number(nll !== null && nll.indexOf(Math.min(...nll)) === item.right));
    }
    rows.push(row);
  }
  return { items: items.length, subjects: new Set(items.map(({ subject }) => subject)).size, capacity: bench.half, experts: bench.info.experts, room, rows };
}

export function page({ items, subjects, capacity, experts, room, rows }) {
  const interval = (list) => (Z95 * (standardError(list) ?? NaN) * 100).toFixed(1);
  const own = rows[0].correct;
  return `${items} questions of ${subjects} subjects, by likelihood of the answer's letter behind as many worked examples as a context of ${room} tokens holds; chance is 25%.
The examples are a prompt, the question is routed as in decoding; topJ 2, ${capacity} of ${experts} experts resident, LRU, each answer from an empty cache.

${table(['λ', 'correct', 'against λ 0, points', 'fewest examples', 'too long to ask'], rows.map(({ lambda, correct, fewestShots, tooLong }) => {
    const against = correct.map((each, index) => each - own[index]);
    return [lambda, `${percent(mean(correct))} ± ${interval(correct)}`, `${signed(mean(against) * 100, 1)} ± ${interval(against)}`, fewestShots === Infinity || fewestShots === null ? '-' : fewestShots, tooLong];
  }))}`;
}
