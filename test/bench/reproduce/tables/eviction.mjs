/**
 * Who leaves a full cache: every policy of the engine and Belady's bound at five capacities, replayed through the engine's
 * own cache on routes recorded here (the model's own choice, λ 0) and on files recorded elsewhere.
 *
 * Precision and recall are meant as in arXiv 2511.05814: per token and layer, the share of the cached experts that the
 * token activates, and the share of the activated experts that were cached; then averaged. Recall is thus the hit rate;
 * with a full cache of C and K activated, precision is recall x K / C, and it is computed so (the first tokens, before
 * the cache is full, count as if it were).
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { hashOf } from '../cell-store.mjs';
import { percent, table } from '../markdown.mjs';
import { mean, sum } from '../statistics.mjs';
import { EVICTIONS } from '../strategies.mjs';
import { plot } from '../svg-plot.mjs';

const { replay: replayTrace } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');

export const name = 'eviction';
export const title = 'Eviction policies and Belady\'s bound';
const cli = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..', '..', '..', '..', 'services', 'cli', 'bin', 'moefleet.js');
const POLICIES = [...EVICTIONS.map(({ name: policy, fields }) => ({ policy, eviction: fields.eviction, halfLifeTokens: fields.evictionHalfLifeTokens ?? 0 })),
  { policy: 'belady', eviction: 'belady', halfLifeTokens: 0 }];

/** tokens x layers x K ids, as evaluation records them, in the order of a replay: layer by layer. */
export function byLayer(routes, layers, topK) {
  const tokens = routes.length / (layers * topK);
  const out = new Int32Array(routes.length);
  for (let token = 0; token < tokens; token += 1) {
    for (let layer = 0; layer < layers; layer += 1) {
      out.set(routes.subarray((token * layers + layer) * topK, (token * layers + layer + 1) * topK), (layer * tokens + token) * topK);
    }
  }
  return out;
}

/** Misses and references of one policy, or null where this build of the engine does not know it. */
async function replay(routes, { layers, topK, experts }, { eviction, halfLifeTokens }, capacity) {
  const layerEvents = new Array(layers).fill(routes.length / (layers * topK));
  try {
    const whatIf = { routing: 'original', lambda: 0, topJ: 0, generation: 0, eviction, evictionHalfLifeTokens: halfLifeTokens, capacities: new Array(layers).fill(capacity) };
    const [result] = await replayTrace({ experts, topK, routes, layerEvents, whatIfs: [whatIf] });
    return { references: sum(result.map((layer) => layer.hits + layer.misses)), misses: sum(result.map((layer) => layer.misses)) };
  } catch (error) {
    if (error.code === 'BAD_ARGUMENT' && eviction === 'adaptive') return null;
    throw error;
  }
}

const row = (source, { policy }, capacity, { references, misses }, { topK, experts }) => {
  const recall = 1 - misses / references;
  return { source, policy, capacity, experts, references, misses, missRate: misses / references, recall, precision: (recall * topK) / capacity };
};

async function ownRows(bench) {
  const shape = { layers: bench.info.moeLayers.length, topK: bench.info.topK, experts: bench.info.experts };
  const rows = [];
  for (const domain of bench.domains) {
    let routes = null;
    for (const capacity of bench.capacities) {
      for (const policy of POLICIES) {
        const { eviction, halfLifeTokens } = policy;
        const found = await bench.cell({ what: 'replay', text: hashOf(bench.tokensOf(domain)), context: bench.context, capacity, eviction, halfLifeTokens }, async () => {
          routes ??= byLayer(await bench.routesOf(domain), shape.layers, shape.topK);
          return { counts: await replay(routes, shape, policy, capacity) };
        });
        if (found.counts) rows.push(row(domain, policy, capacity, found.counts, shape));
      }
    }
  }
  return rows;
}

/** A recorded file through `moefleet engine simulate`, which reads such files. */
function fileRows(path) {
  const [, experts, topK] = /n_expert=(\d+) n_expert_used=(\d+)/.exec(readFileSync(path, 'utf8').slice(0, 4096)) ?? [];
  if (experts === undefined) throw new Error(`${path}: no line with n_expert= and n_expert_used=; give a route file as \`moefleet engine simulate --help\` describes it`);
  const shape = { experts: Number(experts), topK: Number(topK) };
  const capacities = [1 / 8, 1 / 4, 1 / 2].map((share) => Math.max(shape.topK, Math.round(share * shape.experts)));
  const simulate = (policies, halfLifeTokens) => JSON.parse(execFileSync(process.execPath, [cli, 'engine', 'simulate', '--routes', path, '--policy', policies, '--capacity', capacities.join(','),
    '--half-life', String(halfLifeTokens), '--json'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 26 }));
  return POLICIES.flatMap((policy) => {
    try {
      return simulate(policy.eviction, policy.halfLifeTokens).map((each) => row(basename(path, '.route.csv'), policy, each.capacity, each, shape));
    } catch (error) {
      if (policy.eviction === 'adaptive' && error.status === 2) return [];
      throw error;
    }
  });
}

export async function measure(bench, options) {
  const files = options.routes === null ? [] : readdirSync(options.routes).filter((file) => file.endsWith('.route.csv')).sort().map((file) => join(options.routes, file));
  return { rows: [...await ownRows(bench), ...files.flatMap(fileRows)] };
}

const namesOf = (rows, field) => [...new Set(rows.map((each) => each[field]))];

/** Share of the way from LRU to Belady; null where there is none. */
function gapShare(rows, { source, capacity, misses }) {
  const of = (policy) => rows.find((each) => each.source === source && each.capacity === capacity && each.policy === policy).misses;
  const gap = of('lru') - of('belady');
  return gap > 0 ? (of('lru') - misses) / gap : null;
}

export function page({ rows }) {
  const policies = namesOf(rows, 'policy');
  const lines = namesOf(rows, 'source').flatMap((source) => namesOf(rows.filter((each) => each.source === source), 'capacity').map((capacity) => {
    const here = rows.filter((each) => each.source === source && each.capacity === capacity);
    return [source, `${capacity} of ${here[0].experts}`, ...policies.map((policy) => {
      const each = here.find((one) => one.policy === policy);
      return each ? `${percent(each.precision)} / ${percent(each.recall)}` : '-';
    })];
  }));
  const inner = policies.filter((policy) => policy !== 'lru' && policy !== 'belady');
  const shares = namesOf(rows, 'source').map((source) => [source, ...inner.map((policy) => {
    const known = rows.filter((each) => each.source === source && each.policy === policy).map((each) => gapShare(rows, each)).filter((share) => share !== null);
    return known.length ? percent(mean(known)) : '-';
  })]);
  return `Precision (share of the cached experts that a token activates) / recall (share of the activated experts that were cached: the hit rate),
per token and layer, averaged. Cold caches, λ 0.

${table(['routes', 'capacity', ...policies], lines)}

Share of the way from LRU to Belady, mean of the capacities:

${table(['routes', ...inner], shares)}`;
}

export function plots({ rows }) {
  const source = rows[0].source;
  const here = rows.filter((each) => each.source === source);
  return {
    eviction: plot({
      title: `Miss rate by capacity, ${source}`, xLabel: 'experts of a layer that are resident', yLabel: 'miss rate, %',
      series: namesOf(here, 'policy').map((policy) => ({ name: policy, points: here.filter((each) => each.policy === policy).map(({ capacity, missRate }) => [capacity, missRate * 100]) })),
    }),
  };
}
