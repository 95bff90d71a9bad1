/**
 * How well the next layer's experts are foretold: of the misses that pre-fetch guessed, how many were right (precision) and
 * how many of all that were missed (recall), per layer, decoding a text token by token through the real cache with
 * speculative reads. Null where this build of the engine has no pre-fetch.
 */
import { createRequire } from 'node:module';
import { hashOf } from '../cell-store.mjs';
import { percent, table } from '../markdown.mjs';
import { sum } from '../statistics.mjs';
import { plot } from '../svg-plot.mjs';

const { Engine } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');

export const name = 'speculation';
export const title = 'Speculative pre-fetch: precision and recall';
/** Token by token costs many times what a batch does. */
const MOST_TOKENS = 2048;

async function decode(bench, domain, spec) {
  const tokens = bench.tokensOf(domain, Math.max(bench.context, Math.min(bench.tokens, MOST_TOKENS)));
  return bench.cell({ what: 'speculation', text: hashOf(tokens), context: bench.context, spec }, async () => {
    const engine = await Engine.open({ ...bench.settings, keepAll: false, spec });
    try {
      const { misses } = await engine.evaluate({ tokens, context: bench.context, spec, stepped: true });
      return { tokens: tokens.length - 1, misses, layers: engine.counters().layers };
    } finally {
      await engine.close();
    }
  });
}

export async function measure(bench) {
  if (!('guesses' in bench.engine.counters().layers[0])) return null;
  const rows = [];
  for (const domain of bench.mainDomains) {
    for (const lambda of [0, 0.3]) {
      const { tokens, layers } = await decode(bench, domain, bench.spec({ lambda, prefetch: 'on' }));
      for (const { layer, guesses, guessesRight, guessable, prefetchReady, prefetchLate } of layers) {
        rows.push({ domain, lambda, tokens, layer, guesses, right: guessesRight, missed: guessable, ready: prefetchReady, late: prefetchLate });
      }
    }
  }
  return { topK: bench.info.topK, capacity: bench.half, experts: bench.info.experts, rows };
}

const share = (part, whole) => (whole > 0 ? part / whole : null);

export function page({ topK, capacity, experts, rows }) {
  const groups = [...new Set(rows.map(({ domain, lambda }) => `${domain}, λ ${lambda}`))];
  const of = (group) => rows.filter(({ domain, lambda }) => `${domain}, λ ${lambda}` === group);
  const guessed = (layers) => layers.filter(({ guesses }) => guesses > 0);
  const cells = (layers) => {
    const [guesses, right, missed, ready] = ['guesses', 'right', 'missed', 'ready'].map((field) => sum(layers.map((layer) => layer[field])));
    return `${percent(share(right, guesses))} / ${percent(share(right, missed))}, ${percent(share(ready, missed))} ready`;
  };
  return `Precision / recall of the guesses, over the experts that were absent, and how many of these were wholly in memory when their layer was routed
(that depends on the disk of this machine). ${rows[0].tokens} tokens each; K ${topK}, ${capacity} of ${experts} experts resident, topJ 2, LRU. Nothing is foretold of the first layer.

${table(['layer', ...groups], [...guessed(of(groups[0])).map(({ layer }) => [layer, ...groups.map((group) => cells(of(group).filter((row) => row.layer === layer)))]),
    ['all of these', ...groups.map((group) => cells(guessed(of(group))))],
    ['guesses per token and layer', ...groups.map((group) => (sum(guessed(of(group)).map(({ guesses, tokens }) => guesses / tokens)) / guessed(of(group)).length).toFixed(2))]])}`;
}

export function plots({ rows }) {
  const series = [...new Set(rows.map(({ domain }) => domain))].flatMap((domain) => ['precision', 'recall'].map((what) => ({
    name: `${what}, ${domain}`, points: rows.filter((row) => row.domain === domain && row.lambda === 0 && row.guesses > 0).map(({ layer, right, guesses, missed }) => [layer, (right / (what === 'precision' ? guesses : missed)) * 100]),
  })));
  return { speculation: plot({ title: 'Guesses of the next layer\'s absent experts, λ 0', xLabel: 'layer', yLabel: '%', series }) };
}
