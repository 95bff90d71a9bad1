/** A prompt routed by the model alone against one that is bent too: each window's first half is a prompt, its second half is scored. */
import { lossText, percent, table } from '../markdown.mjs';
import { lossOf } from '../model-bench.mjs';

export const name = 'prefill-bias';
export const title = 'Bias in decode only, and in prefill too';

export async function measure(bench) {
  const promptTokens = Math.floor(bench.context / 2);
  const topJs = [1, 2].filter((topJ) => topJ <= bench.info.topK);
  const rows = [];
  for (const domain of bench.mainDomains) {
    const own = await bench.own(domain, {}, { promptTokens });
    for (const topJ of topJs) {
      for (const lambda of [0.1, 0.3, 1]) {
        const [decode, both] = [await bench.score(domain, { lambda, topJ }, { promptTokens }), await bench.score(domain, { lambda, topJ, biasPrefill: true }, { promptTokens })];
        const figures = (cell) => ({ missRate: cell.missRate, promptMisses: cell.promptMisses / (own.promptHits + own.promptMisses), loss: lossOf(cell, own) });
        rows.push({ domain, topJ, lambda, ownMissRate: own.missRate, ownPromptMisses: own.promptMisses / (own.promptHits + own.promptMisses), decode: figures(decode), both: figures(both), bothAgainstDecode: lossOf(both, decode) });
      }
    }
  }
  return { promptTokens, capacity: bench.half, experts: bench.info.experts, rows };
}

export function page({ promptTokens, capacity, experts, rows }) {
  const cell = ({ missRate, promptMisses, loss }) => [percent(missRate, 2), percent(promptMisses), lossText(loss)];
  return `Prompts of ${promptTokens} tokens; ${capacity} of ${experts} experts resident, LRU. Of decode: misses per slot. Of the prompt: misses as a share of
the distinct experts that the unbent prompt needs of a layer and micro-batch. Perplexity of what follows the prompt, against λ 0; the last column is the two against each other.

${table(['text', 'topJ', 'λ', 'own: misses', 'own: prompt', 'decode only: misses', 'prompt', 'perplexity', 'prefill too: misses', 'prompt', 'perplexity', 'prefill too against decode only'],
    rows.map((row) => [row.domain, row.topJ, row.lambda, percent(row.ownMissRate, 2), percent(row.ownPromptMisses), ...cell(row.decode), ...cell(row.both), lossText(row.bothAgainstDecode)]))}`;
}
