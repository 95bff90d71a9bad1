/** Settings by layer against plain LRU at the same capacity, on every text: how few misses 1% of perplexity buys. */
import { lossText, percent, table } from '../markdown.mjs';
import { lossOf } from '../model-bench.mjs';
import { operatingPointsOf } from '../operating-points.mjs';

export const name = 'operating-point';
export const title = 'Operating points: settings by layer';

/** The same for every layer, for models that nobody tuned. */
const UNIFORM = { name: 'uniform', fields: { lambda: 0.2, topJ: 1, eviction: 'lfu', evictionHalfLifeTokens: 128 } };

export async function measure(bench) {
  const points = [UNIFORM, ...operatingPointsOf(bench.hash)];
  const rows = [];
  for (const capacity of [bench.half, bench.fortyPercent]) {
    for (const domain of bench.domains) {
      const own = await bench.own(domain, { capacity });
      for (const { name: point, fields } of points) {
        const cell = await bench.score(domain, { capacity, ...fields });
        rows.push({ capacity, domain, tokens: cell.tokens, point, ownMissRate: own.missRate, missRate: cell.missRate, fewerMisses: 1 - cell.misses / own.misses, loss: lossOf(cell, own) });
      }
    }
  }
  return { experts: bench.info.experts, points, rows };
}

const flags = ({ lambda, lambdas, topJ, topJs, eviction, evictionHalfLifeTokens }) =>
  `--lambda ${lambdas ?? lambda} --top-j ${topJs ?? topJ} --eviction ${eviction}${evictionHalfLifeTokens ? ` --half-life ${evictionHalfLifeTokens}` : ''}`;

export function page({ experts, points, rows }) {
  const capacities = [...new Set(rows.map(({ capacity }) => capacity))];
  const domains = [...new Set(rows.map(({ domain }) => domain))];
  return `Fewer misses than LRU at λ 0 with the same capacity, and perplexity against λ 0.

${points.map((point) => `- ${point.name}: \`${flags(point.fields)}\``).join('\n')}

${capacities.map((capacity) => `${capacity} of ${experts} experts resident:

${table(['text', 'tokens', 'LRU misses', ...points.map((point) => point.name)], domains.map((domain) => {
    const here = rows.filter((row) => row.capacity === capacity && row.domain === domain);
    return [domain, here[0].tokens, percent(here[0].ownMissRate), ...here.map(({ fewerMisses, loss }) => `${percent(fewerMisses)} at ${lossText(loss)}`)];
  }))}`).join('\n\n')}`;
}
