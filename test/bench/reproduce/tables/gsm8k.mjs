/** GSM8K: chain of thought behind worked examples, generated greedily by the engine under rising λ. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { finalNumber, firstAnswer, gsm8kPrompt, parseGsm8k, STOP } from '../gsm8k.mjs';
import { percent, signed, table } from '../markdown.mjs';
import { mean, standardError, Z95 } from '../statistics.mjs';

const { Engine } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');

export const name = 'gsm8k';
export const title = 'GSM8K';
const LAMBDAS = [0, 0.1, 0.3];
const DEFAULT_SHOTS = 8;
const MOST_ANSWER_TOKENS = 320;
const MOST_CONTEXT_TOKENS = 4096;

const read = (path) => parseGsm8k(readFileSync(path, 'utf8'), path);

/** As many examples as leave room for the answer. */
function fittingPrompt(engine, examples, question, room) {
  for (let shots = examples.length; shots >= 0; shots -= 1) {
    const prompt = engine.tokenize(gsm8kPrompt(examples.slice(0, shots), question), true, false);
    if (prompt.length <= room) return { prompt, shots };
  }
  return null;
}

async function answer(engine, prompt, maxTokens) {
  const decoder = new TextDecoder();
  const stop = new AbortController();
  let text = '';
  const result = await engine.generate({ requestId: 'gsm8k', prompt, maxTokens, temperature: 0, topP: 1, seed: 0, coldCache: true, captureRouter: false }, (step) => {
    text += decoder.decode(step.text, { stream: true });
    if (text.includes(STOP)) stop.abort();
  }, stop.signal);
  return { text: firstAnswer(text), hits: result.decodeHits, misses: result.decodeMisses };
}

export async function measure(bench, options) {
  if (options.gsm8k === null) return null;
  const examples = read(join(options.gsm8k, 'train.jsonl')).slice(0, options.shots ?? DEFAULT_SHOTS);
  const items = read(join(options.gsm8k, 'test.jsonl')).slice(0, options.items);
  const contextTokens = Math.min(bench.info.contextTrain, MOST_CONTEXT_TOKENS);
  const maxTokens = Math.min(MOST_ANSWER_TOKENS, Math.floor(contextTokens / 3));
  const rows = [];
  const engine = await Engine.open({ ...bench.settings, contextTokens });
  try {
    for (const lambda of LAMBDAS) {
      const spec = bench.spec({ lambda, topJ: Math.min(2, bench.info.topK) });
      await engine.apply(spec);
      const row = { lambda, correct: [], hits: 0, misses: 0, fewestShots: Infinity, tooLong: 0 };
      for (const { question, number } of items) {
        const fitted = fittingPrompt(engine, examples, question, contextTokens - maxTokens);
        row.tooLong += Number(fitted === null);
        row.fewestShots = Math.min(row.fewestShots, fitted?.shots ?? Infinity);
        const said = fitted && await bench.cell({ what: 'gsm8k', prompt: [...fitted.prompt], maxTokens, spec, contextTokens }, () => answer(engine, fitted.prompt, maxTokens));
        row.correct.push(Number(said !== null && finalNumber(said.text) === number));
        row.hits += said?.hits ?? 0;
        row.misses += said?.misses ?? 0;
      }
      rows.push(row);
    }
  } finally {
    await engine.close();
  }
  return { items: items.length, shots: examples.length, capacity: bench.half, experts: bench.info.experts, contextTokens, rows };
}

export function page({ items, shots, capacity, experts, contextTokens, rows }) {
  const interval = (list) => (Z95 * (standardError(list) ?? NaN) * 100).toFixed(1);
  const own = rows[0].correct;
  return `${items} questions of the test split behind up to ${shots} worked examples (as many as a context of ${contextTokens} tokens holds beside the answer), greedy; exact
match of the number behind '####', or of the last one. Decode is bent, prompts are not; topJ 2, ${capacity} of ${experts} experts resident, LRU, each answer from an empty cache.

${table(['λ', 'correct', 'against λ 0, points', 'decode misses', 'fewest examples', 'too long to ask'], rows.map(({ lambda, correct, hits, misses, fewestShots, tooLong }) => {
    const against = correct.map((each, index) => each - own[index]);
    return [lambda, `${percent(mean(correct))} ± ${interval(correct)}`, `${signed(mean(against) * 100, 1)} ± ${interval(against)}`, percent(misses / (hits + misses)), fewestShots === Infinity || fewestShots === null ? '-' : fewestShots, tooLong];
  }))}`;
}
