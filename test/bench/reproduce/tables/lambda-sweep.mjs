/** λ from 0 to 1 by topJ, at several capacities. */
import { lossText, percent, table } from '../markdown.mjs';
import { lossOf } from '../model-bench.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'lambda-sweep';
export const title = 'λ by topJ';
const LAMBDAS = [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1];

export async function measure(bench) {
  const domain = bench.domains[0];
  const rows = [];
  for (const capacity of [bench.fortyPercent, bench.half, bench.capacities.at(-1)]) {
    const own = await bench.own(domain, { capacity });
    for (const topJ of bench.topJs) {
      for (const lambda of LAMBDAS) {
        const cell = await bench.score(domain, { capacity, lambda, topJ });
        rows.push({ capacity, topJ, lambda, missRate: cell.missRate, swapRate: cell.swapRate, massLost: cell.massLost, loss: lossOf(cell, own) });
      }
    }
  }
  return { domain, experts: bench.info.experts, rows };
}

const valuesOf = (rows, field) => [...new Set(rows.map((row) => row[field]))];

export function page({ domain, experts, rows }) {
  const topJs = valuesOf(rows, 'topJ');
  return valuesOf(rows, 'capacity').map((capacity) => `${capacity} of ${experts} experts resident, ${domain}, LRU: miss rate, and perplexity against λ 0.

${table(['λ', ...topJs.map((topJ) => `topJ ${topJ}`)], valuesOf(rows, 'lambda').map((lambda) => [lambda, ...topJs.map((topJ) => {
    const { missRate, loss } = rows.find((row) => row.capacity === capacity && row.lambda === lambda && row.topJ === topJ);
    return `${percent(missRate)}, ${lossText(loss)}`;
  })]))}`).join('\n\n');
}

export function plots({ rows }) {
  const series = (value) => valuesOf(rows, 'capacity').flatMap((capacity) => valuesOf(rows, 'topJ').map((topJ) => ({
    name: `capacity ${capacity}, topJ ${topJ}`, points: rows.filter((row) => row.capacity === capacity && row.topJ === topJ).map((row) => [row.lambda, value(row)]),
  })));
  return {
    'lambda-misses': plot({ title: 'Miss rate by λ', xLabel: 'λ', yLabel: 'miss rate, %', series: series(({ missRate }) => missRate * 100) }),
    'lambda-perplexity': plot({ title: 'Perplexity by λ', xLabel: 'λ', yLabel: 'perplexity, % more', series: series(({ loss }) => loss.percent) }),
  };
}
