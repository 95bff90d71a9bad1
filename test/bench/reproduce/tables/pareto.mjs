/** Misses against perplexity of every strategy, with half of the experts resident. */
import { lossText, percent, table } from '../markdown.mjs';
import { lossOf } from '../model-bench.mjs';
import { paretoFront } from '../statistics.mjs';
import { allStrategies, fewStrategies } from '../strategies.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'pareto';
export const title = 'Misses against perplexity, all strategies';
const MOST_LOSS_PERCENT = 1;
/** What lies above would squeeze everything else against the axis. */
const MOST_SHOWN_PERCENT = 4;

export async function measure(bench) {
  const rows = [];
  for (const domain of bench.domains) {
    const own = await bench.own(domain);
    const strategies = domain === bench.domains[0] ? allStrategies(bench) : fewStrategies(bench);
    for (const { strategy, setting, fields } of strategies) {
      const cell = await bench.score(domain, fields);
      rows.push({ domain, strategy, setting, tokens: cell.tokens, missRate: cell.missRate, ownMissRate: own.missRate, fewerMisses: 1 - cell.misses / own.misses, loss: lossOf(cell, own) });
    }
  }
  return { capacity: bench.half, experts: bench.info.experts, rows };
}

const namesOf = (rows, field) => [...new Set(rows.map((row) => row[field]))];
const cheapest = (rows) => rows.filter(({ loss }) => loss.percent <= MOST_LOSS_PERCENT).sort((a, b) => a.missRate - b.missRate)[0];

export function page({ capacity, experts, rows }) {
  const domains = namesOf(rows, 'domain');
  const strategies = namesOf(rows, 'strategy');
  const first = rows.filter(({ domain }) => domain === domains[0]);
  const front = paretoFront(first, ({ missRate }) => missRate, ({ loss }) => loss.percent);
  return `${capacity} of ${experts} experts resident, LRU unless said. Losses with 95% intervals, each window compared with itself.

Fewest misses at ≤ ${MOST_LOSS_PERCENT}% more perplexity, per strategy (fewer misses than LRU at λ 0, perplexity, setting); '-' where no setting of the grid stays within it:

${table(['text', 'LRU misses', ...strategies], domains.map((domain) => {
    const here = rows.filter((row) => row.domain === domain);
    return [domain, percent(here[0].ownMissRate), ...strategies.map((strategy) => {
      const best = cheapest(here.filter((row) => row.strategy === strategy));
      return best ? `${percent(best.fewerMisses)} at ${lossText(best.loss)} (${best.setting})` : '-';
    })];
  }))}

The front on ${domains[0]}, of ${first.length} settings:

${table(['setting', 'miss rate', 'fewer misses', 'perplexity'], front.map(({ strategy, setting, missRate, fewerMisses, loss }) => [`${strategy}: ${setting}`, percent(missRate, 2), percent(fewerMisses), lossText(loss)]))}`;
}

export function plots({ rows }) {
  return Object.fromEntries(namesOf(rows, 'domain').map((domain) => {
    const here = rows.filter((row) => row.domain === domain && row.loss.percent <= MOST_SHOWN_PERCENT);
    return [`pareto-${domain}`, plot({
      title: `Miss rate against perplexity, ${domain}`, xLabel: 'miss rate, %', yLabel: 'perplexity, % more',
      series: namesOf(rows, 'strategy').map((strategy) => ({ name: strategy, line: false, points: here.filter((row) => row.strategy === strategy).map(({ missRate, loss }) => [missRate * 100, loss.percent]) })),
    })];
  }));
}
