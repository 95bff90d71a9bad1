/** How long an expert stays: mean tokens from admission to eviction, by strategy and by eviction policy. */
import { fixed, percent, table } from '../markdown.mjs';
import { knowsEviction } from '../model-bench.mjs';
import { EVICTIONS } from '../strategies.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'lifetime';
export const title = 'Expert lifetimes';

export async function measure(bench) {
  const domain = bench.domains[0];
  const { topK } = bench.info;
  const strategies = [
    ...[0, 0.05, 0.1, 0.2, 0.3, 0.5, 1].map((lambda) => ({ name: `cache_prior, λ ${lambda}, topJ 2`, lambda, fields: { lambda } })),
    ...[0.1, 0.3, 1].map((lambda) => ({ name: `cache_prior, λ ${lambda}, topJ 1`, lambda, fields: { lambda, topJ: 1 } })),
    { name: `max_rank, M ${2 * topK}, topJ 2`, lambda: null, fields: { routing: 'max_rank', maxRank: 2 * topK } },
    { name: 'cumulative_threshold, p 0.7, topJ 2', lambda: null, fields: { routing: 'cumulative_threshold', massThreshold: 0.7 } },
    { name: 'pruned, topJ 2', lambda: null, fields: { routing: 'pruned' } },
  ].map((one) => ({ ...one, eviction: 'lru' }));
  for (const { name: eviction, fields } of EVICTIONS.slice(1)) {
    if (!(await knowsEviction(bench, fields.eviction))) continue;
    for (const lambda of [0, 0.1, 0.3]) strategies.push({ name: `cache_prior, λ ${lambda}, topJ 2`, lambda, eviction, fields: { lambda, ...fields } });
  }
  const rows = [];
  for (const { name: strategy, lambda, eviction, fields } of strategies) {
    const { missRate, meanLifetimeTokens, perLayer } = await bench.score(domain, fields);
    rows.push({ strategy, lambda, eviction, missRate, meanLifetimeTokens, perLayer: perLayer.map((layer) => layer.meanLifetimeTokens) });
  }
  return { domain, capacity: bench.half, experts: bench.info.experts, rows };
}

export function page({ domain, capacity, experts, rows }) {
  return `Tokens from admission to eviction on ${domain}, ${capacity} of ${experts} experts resident; over all layers (evictions weigh alike), and
the least and most of the layers. An expert that never left does not count.

${table(['strategy', 'eviction', 'miss rate', 'lifetime', 'by layer'], rows.map(({ strategy, eviction, missRate, meanLifetimeTokens, perLayer }) => {
    const known = perLayer.filter((each) => each !== null);
    return [strategy, eviction, percent(missRate, 2), fixed(meanLifetimeTokens, 1), known.length ? `${fixed(Math.min(...known), 1)} to ${fixed(Math.max(...known), 1)}` : '-'];
  }))}`;
}

export function plots({ rows }) {
  const graded = rows.filter(({ lambda, strategy }) => lambda !== null && strategy.endsWith('topJ 2'));
  return {
    lifetime: plot({
      title: 'Expert lifetime by λ, topJ 2', xLabel: 'λ', yLabel: 'tokens',
      series: [...new Set(graded.map(({ eviction }) => eviction))].map((eviction) => ({ name: eviction, points: graded.filter((row) => row.eviction === eviction).map((row) => [row.lambda, row.meanLifetimeTokens]) })),
    }),
  };
}
