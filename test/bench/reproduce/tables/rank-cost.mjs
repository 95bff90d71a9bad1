/** What each rank of a token's experts is worth: it is replaced by a random expert from outside of the top-K. */
import { lossText, table } from '../markdown.mjs';
import { lossOf, windowNll } from '../model-bench.mjs';
import { mean, pairedLoss, Z95 } from '../statistics.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'rank-cost';
export const title = 'Cost of replacing each rank';
const SEEDS = [1, 2, 3, 4, 5];

export async function measure(bench) {
  const rows = [];
  for (const domain of bench.mainDomains) {
    const own = await bench.own(domain);
    for (let rank = 1; rank <= bench.info.topK; rank += 1) {
      const cells = [];
      for (const seed of SEEDS) cells.push(await bench.score(domain, { routing: 'sensitivity', rank, seed }));
      const perWindow = own.windows.map((_, index) => mean(cells.map((cell) => windowNll(cell)[index])));
      const bySeed = cells.map((cell) => lossOf(cell, own).percent);
      rows.push({ domain, rank, tokens: own.tokens, loss: pairedLoss(perWindow, windowNll(own), own.scored), leastOfSeeds: Math.min(...bySeed), mostOfSeeds: Math.max(...bySeed) });
    }
  }
  return { seeds: SEEDS.length, rows };
}

export function page({ seeds, rows }) {
  const domains = [...new Set(rows.map(({ domain }) => domain))];
  const ranks = [...new Set(rows.map(({ rank }) => rank))];
  const of = (domain, rank) => rows.find((row) => row.domain === domain && row.rank === rank);
  return `Change of perplexity when the expert of one rank is replaced by a random one at every token and layer, mean of ${seeds} seeds,
95% interval over windows; in brackets the least and most of the seeds.

${table(['rank', ...domains], ranks.map((rank) => [rank, ...domains.map((domain) => {
    const { loss, leastOfSeeds, mostOfSeeds } = of(domain, rank);
    return `${lossText(loss)} (${leastOfSeeds.toFixed(2)} to ${mostOfSeeds.toFixed(2)})`;
  })]))}`;
}

export function plots({ rows }) {
  const domains = [...new Set(rows.map(({ domain }) => domain))];
  return {
    'rank-cost': plot({
      title: 'Perplexity lost where one rank is replaced at random', xLabel: 'rank (1: the best)', yLabel: 'perplexity, % more', yLog: true,
      series: domains.map((domain) => ({ name: domain, points: rows.filter((row) => row.domain === domain).map(({ rank, loss }) => [rank, loss.percent, Z95 * loss.percentError]) })),
    }),
  };
}
