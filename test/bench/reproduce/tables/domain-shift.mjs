/**
 * What a change of subject does to the running range mean, which scales λ, and to the cache: three texts in a row, the
 * cache and the means living on. Figures are of windows of 256 tokens.
 */
import { fixed, percent, signed, table } from '../markdown.mjs';
import { knowsEviction } from '../model-bench.mjs';
import { mean } from '../statistics.mjs';
import { EVICTIONS } from '../strategies.mjs';
import { plot } from '../svg-plot.mjs';

export const name = 'domain-shift';
export const title = 'Stability when the subject changes';
const LAMBDAS = [0, 0.3];
/** Windows before a change, and at the end of a text, that stand for its steady state. */
const STEADY_WINDOWS = 8;

const missRate = ({ hits, misses }) => misses / (hits + misses);

/** Mean range of the tokens of window `index` alone, per layer, from the running means at its end and at the one before. */
export const ownRange = (windows, index) => windows[index].rangeMeans.map((running, layer) => running * (index + 1) - (index > 0 ? windows[index - 1].rangeMeans[layer] * index : 0));

export async function measure(bench) {
  const domains = ['code', bench.domains.includes('drama') ? 'drama' : 'wikitext', 'math'];
  const parts = domains.map((domain) => bench.tokensOf(domain));
  const counts = parts.map((part) => (part.length - 1) / bench.context);
  const ids = Int32Array.from([...parts.flatMap((part) => [...part.subarray(0, part.length - 1)]), parts.at(-1).at(-1)]);
  const policies = [];
  for (const one of EVICTIONS) if (await knowsEviction(bench, one.fields.eviction)) policies.push(one);

  const rows = [];
  let ranges = null;
  for (const lambda of LAMBDAS) {
    for (const { name: eviction, fields } of policies) {
      const { windows } = await bench.score(ids, { lambda, ...fields });
      ranges ??= windows.map((window, index) => ({ running: window.rangeMeans, own: ownRange(windows, index) }));
      rows.push({ lambda, eviction, missRates: windows.map(missRate) });
    }
  }
  return { domains, windowsOf: counts, capacity: bench.half, experts: bench.info.experts, rows, ranges };
}

/** Where each text begins and ends, in windows. */
function spans({ domains, windowsOf }) {
  let at = 0;
  return domains.map((domain, index) => ({ domain, from: at, to: (at += windowsOf[index]) }));
}

const largest = (list) => list.reduce((most, each) => (Math.abs(each) > Math.abs(most) ? each : most), 0);

export function page(data) {
  const texts = spans(data);
  const steady = (rates, { from, to }) => mean(rates.slice(Math.max(from, to - STEADY_WINDOWS), to));
  const shifts = texts.slice(1);
  // The running mean at a text's end, and the mean of that text alone, which it would have without a past.
  const drift = texts.map(({ domain, from, to }) => {
    const alone = data.ranges[0].running.map((_, layer) => mean(data.ranges.slice(from, to).map(({ own }) => own[layer])));
    const off = (window) => largest(alone.map((value, layer) => data.ranges[window].running[layer] / value - 1));
    return { domain, alone, first: off(from), last: off(to - 1) };
  });
  return `${data.domains.join(' → ')}, ${data.windowsOf.join(', ')} windows; ${data.capacity} of ${data.experts} experts resident, topJ 2.

The range mean of each text by itself, per layer, and how far the running mean is off it (the layer that is off most) after the text's first window and after its last, at λ 0:

${table(['text', ...drift[0].alone.map((_, layer) => `layer ${layer}`), 'off at first', 'off at last'],
    drift.map(({ domain, alone, first, last }) => [domain, ...alone.map((value) => fixed(value, 2)), `${signed(first * 100, 1)}%`, `${signed(last * 100, 1)}%`]))}

Miss rates: steady (mean of the last ${STEADY_WINDOWS} windows of a text) and in the first windows of the next:

${table(['λ', 'eviction', ...texts.flatMap((text, index) => (index === 0 ? [`${text.domain}, steady`] : [1, 2, 4].map((n) => `${text.domain}, window ${n}`).concat(`${text.domain}, steady`)))],
    data.rows.map(({ lambda, eviction, missRates }) => [lambda, eviction, percent(steady(missRates, texts[0])),
      ...shifts.flatMap((text) => [...[0, 1, 3].map((after) => percent(text.from + after < text.to ? missRates[text.from + after] : null)), percent(steady(missRates, text))])]))}`;
}

export function plots(data) {
  const texts = spans(data);
  return {
    'domain-shift-misses': plot({
      title: `Miss rate by window: ${texts.map(({ domain, from }) => `${domain} from ${from}`).join(', ')}`, xLabel: 'window of 256 tokens', yLabel: 'miss rate, %',
      series: data.rows.map(({ lambda, eviction, missRates }) => ({ name: `λ ${lambda}, ${eviction}`, points: missRates.map((rate, index) => [index, rate * 100]) })),
    }),
    'domain-shift-ranges': plot({
      title: 'Running range mean by window, per layer', xLabel: 'window of 256 tokens', yLabel: 'running mean of max(z) - min(z)',
      series: data.ranges[0].running.map((_, layer) => ({ name: `layer ${layer}`, points: data.ranges.map(({ running }, index) => [index, running[layer]]) })),
    }),
  };
}
