/** Four-way choice of the true continuation by likelihood, under rising λ. */
import { hashOf } from '../cell-store.mjs';
import { choiceItems, choiceWindows, likeliestAnswers } from '../choice-items.mjs';
import { percent, signed, table } from '../markdown.mjs';
import { mean, standardError, Z95 } from '../statistics.mjs';

export const name = 'choice-accuracy';
export const title = 'Four-way choice of the continuation';
const LAMBDAS = [0, 0.1, 0.3, 1];
const ITEMS_PER_DOMAIN = 60;
const SEED = 1;

export async function measure(bench) {
  const [answerTokens, contextTokens] = [Math.floor(bench.context / 16), Math.floor(bench.context / 4)];
  const rows = [];
  for (const domain of bench.domains) {
    const items = choiceItems(bench.tokensOf(domain, Infinity), { count: ITEMS_PER_DOMAIN, contextTokens, answerTokens, seed: SEED });
    const windows = choiceWindows(items);
    const correct = async (lambda) => {
      const spec = bench.spec({ lambda, topJ: Math.min(2, bench.info.topK) });
      const key = { what: 'choice', text: hashOf(windows.tokens), spec, context: windows.context, promptTokens: windows.promptTokens };
      const chosen = await bench.cell(key, async () => likeliestAnswers((await bench.evaluate(windows.tokens, spec, windows)).tokenNll, windows));
      return chosen.map((answer, index) => Number(answer === items[index].right));
    };
    const own = await correct(LAMBDAS[0]);
    for (const lambda of LAMBDAS) {
      const here = await correct(lambda);
      rows.push({ domain, lambda, correct: here, againstOwn: here.map((each, index) => each - own[index]) });
    }
  }
  return { capacity: bench.half, experts: bench.info.experts, contextTokens, answerTokens, rows };
}

const interval = (list) => Z95 * (standardError(list) ?? NaN) * 100;

export function page({ capacity, experts, contextTokens, answerTokens, rows }) {
  const domains = [...new Set(rows.map(({ domain }) => domain))];
  const lambdas = [...new Set(rows.map(({ lambda }) => lambda))];
  const of = (lambda, domain) => rows.filter((row) => row.lambda === lambda && (domain === null || row.domain === domain));
  const lines = [...domains, null].map((domain) => [domain ?? 'all', of(0, domain).flatMap(({ correct }) => correct).length, ...lambdas.flatMap((lambda) => {
    const here = of(lambda, domain);
    const [correct, against] = [here.flatMap((row) => row.correct), here.flatMap((row) => row.againstOwn)];
    const rate = `${percent(mean(correct))} ± ${interval(correct).toFixed(1)}`;
    return lambda === 0 ? [rate] : [`${rate} (${signed(mean(against) * 100, 1)} ± ${interval(against).toFixed(1)})`];
  })]);
  return `The true continuation of ${answerTokens} tokens behind ${contextTokens} of the text against three from elsewhere in the same text, by likelihood; chance is 25%.
The context is a prompt, what follows is routed as in decoding; topJ 2, ${capacity} of ${experts} experts resident, LRU. In brackets: points against λ 0 on the
same questions, with the 95% interval of the paired difference.

${table(['text', 'questions', ...lambdas.map((lambda) => `λ ${lambda}`)], lines)}`;
}
