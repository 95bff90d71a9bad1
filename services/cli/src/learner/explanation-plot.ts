/** The loss over λ as it was measured at the device's capacities, one line per routing and topJ, with the budget and the point chosen. */
import { plot, type Series } from '@moefleet/replay';
import { capacityText } from '../table';
import { boundPercent, type Explanation } from './explanation';

/** null where nothing is measured for the device. */
export function explanationSvg(one: Explanation): string | null {
  const { measured, chosen, budgets } = one;
  if (!chosen || !budgets || measured.length === 0) return null;
  const baseline = measured.find(({ lambda }) => lambda === 0);
  const bent = measured.filter(({ lambda }) => lambda > 0);
  const kinds = [...new Map(bent.map(({ routing, topJ }) => [`${routing} ${topJ}`, { routing, topJ }])).values()];
  const lines: Series[] = kinds.map(({ routing, topJ }) => ({
    name: `${routing} topJ ${topJ}, mean of ${measured[0]!.domains.map(({ domain }) => domain).join(', ')}; bars: 95% bound`,
    points: [
      ...(baseline ? [[0, 0] as const] : []),
      ...bent.filter((row) => row.routing === routing && row.topJ === topJ).map((row) => [row.lambda, row.meanPercent, boundPercent(meanError(row.domains))] as const),
    ],
  }));
  const most = Math.max(...measured.map(({ lambda }) => lambda), chosen.lambda);
  return plot({
    title: `${one.device}: what λ costs at capacity ${capacityText(chosen.capacities)}, and what was chosen`, xLabel: bent.some(({ routing }) => routing !== 'cache_prior') ? 'λ; of another routing how far it bends, 1 is the most' : 'λ', yLabel: 'perplexity loss, %',
    series: [
      ...lines,
      { name: `budget, ${budgets.meanPercent.toFixed(2)}%`, points: [[0, budgets.meanPercent], [most, budgets.meanPercent]] },
      { name: `chosen: ${chosen.setting}, bound by ${one.boundBy ?? 'nothing'}`, points: [[chosen.lambda, chosen.loss.meanPercent, chosen.loss.atMostPercent - chosen.loss.meanPercent]], line: false },
    ],
  });
}

/** Of a mean over domains. */
function meanError(domains: readonly { stderrPercent: number }[]): number {
  return Math.sqrt(domains.reduce((sum, { stderrPercent }) => sum + stderrPercent ** 2, 0)) / domains.length;
}
