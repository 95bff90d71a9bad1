/** How unevenly each layer uses its experts under the model's own routing. */
import { fixed, percent, table } from '../markdown.mjs';
import { hashOf } from '../cell-store.mjs';
import { evenness, gini, topShare } from '../statistics.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'expert-use';
export const title = 'Expert use by layer';

/** Uses of every expert, per layer, from tokens x layers x K ids. */
export function countUses(routes, { layers, topK, experts }) {
  const uses = Array.from({ length: layers }, () => new Array(experts).fill(0));
  routes.forEach((expert, at) => { if (expert >= 0) uses[Math.floor(at / topK) % layers][expert] += 1; });
  return uses;
}

export async function measure(bench) {
  const { moeLayers, topK, experts } = bench.info;
  const rows = [];
  for (const domain of bench.domains) {
    const uses = await bench.cell({ what: 'uses', text: hashOf(bench.tokensOf(domain)), context: bench.context },
      async () => countUses(await bench.routesOf(domain), { layers: moeLayers.length, topK, experts }));
    uses.forEach((counts, index) => rows.push({
      domain, layer: moeLayers[index], gini: gini(counts), evenness: evenness(counts), topK: topShare(counts, topK),
      half: topShare(counts, Math.round(experts / 2)), unused: counts.filter((count) => count === 0).length, counts,
    }));
  }
  return { experts, topK, rows };
}

export function page({ experts, topK, rows }) {
  return `Shares of all uses that go to a layer's ${topK} and ${Math.round(experts / 2)} most used of ${experts} experts (alike they would have
${percent(topK / experts)} and 50%), Gini coefficient (0: alike), and entropy as a share of the largest possible.

${table(['text', 'layer', 'Gini', 'entropy', `top ${topK}`, `top ${Math.round(experts / 2)}`, 'never used'], rows.map((row) => [
    row.domain, row.layer, fixed(row.gini, 3), fixed(row.evenness, 3), percent(row.topK), percent(row.half), row.unused]))}`;
}

export function plots({ rows }) {
  const domain = rows[0].domain;
  return {
    'expert-use': plot({
      title: `Share of uses by expert, most used first, ${domain}`, xLabel: 'experts of the layer, by use', yLabel: 'share of uses, %',
      series: rows.filter((row) => row.domain === domain).map(({ layer, counts }) => {
        const total = counts.reduce((sum, count) => sum + count, 0);
        return { name: `layer ${layer}`, points: [...counts].sort((a, b) => b - a).map((count, index) => [index + 1, (count / total) * 100]) };
      }),
    }),
  };
}
