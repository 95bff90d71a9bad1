/**
 * Routing events a second that one core replays, on scores recorded from a model of ours and repeated to a million events.
 * Median of three runs.
 *
 *   node test/bench/replay-speed.mjs [--model FILE] [--text FILE] [--events 1000000] [--runs 3] [--json]
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fixtures, median, readFlags } from './shared.mjs';

const { Engine, inspectModel, lruCurve, quantise, replay } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');
const values = readFlags({
  model: { type: 'string', default: fixtures.model }, text: { type: 'string', default: fixtures.text }, events: { type: 'string', default: '1000000' },
  runs: { type: 'string', default: '3' }, json: { type: 'boolean', default: false },
});
const [TOKENS, CONTEXT] = [2048, 256];

async function record() {
  const engine = await Engine.open({
    modelPath: values.model, contextTokens: CONTEXT, threads: 1, lanes: 0, directIo: false, prefillBytes: 0, keepAll: true, spec: spec(await inspectModel(values.model), {}),
  });
  try {
    const tokens = engine.tokenize(readFileSync(values.text, 'utf8'), false, false).slice(0, TOKENS + 1);
    const { scores } = await engine.evaluate({ tokens, context: CONTEXT, spec: engine.spec(), stepped: false, recordScores: true });
    return { info: engine.info(), scores };
  } finally {
    await engine.close();
  }
}

function spec({ moeLayers, experts }, fields) {
  return { routing: 'original', lambda: 0, topJ: 2, generation: 0, eviction: 'lru', capacities: moeLayers.map(() => experts >> 1), ...fields };
}

const { info, scores } = await record();
const layers = info.moeLayers.length;
const tokens = Math.ceil(Number(values.events) / layers);
const part = quantise(scores, info.experts);
const rows = Buffer.alloc((part.length / TOKENS) * tokens, part);
const trace = { experts: info.experts, topK: info.topK, layerEvents: info.moeLayers.map(() => tokens), rows, rowsMask: true };
const bent = { routing: 'cache_prior', lambda: 0.2 };
const maxRank = { routing: 'max_rank', maxRank: 2 * info.topK };
const threshold = { routing: 'cumulative_threshold', massThreshold: 0.7 };
const WHAT_IFS = [
  ['λ 0, lru', {}], ['λ 0, lfu', { eviction: 'lfu' }], ['λ 0, lfru', { eviction: 'lfru' }], ['λ 0, belady', { eviction: 'belady' }], ['λ 0, adaptive', { eviction: 'adaptive' }],
  ['λ 0.2, lru', bent], ['λ 0.2, lfu', { ...bent, eviction: 'lfu' }], ['λ 0.2, lfru', { ...bent, eviction: 'lfru' }], ['λ 0.2, adaptive', { ...bent, eviction: 'adaptive' }],
  ['max_rank, lru', maxRank], ['max_rank, adaptive', { ...maxRank, eviction: 'adaptive' }],
  ['cumulative_threshold, lru', threshold], ['cumulative_threshold, adaptive', { ...threshold, eviction: 'adaptive' }],
  ['pruned, lru', { routing: 'pruned' }], ['sensitivity, lru', { routing: 'sensitivity', rank: 2 }],
];

async function timed(work) {
  const seconds = [];
  for (let run = 0; run < Number(values.runs); run += 1) {
    const start = performance.now();
    await work();
    seconds.push((performance.now() - start) / 1000);
  }
  return median(seconds);
}

const events = tokens * layers;
// What is done once for all what-ifs of a call: the record is copied and checked, and the model's own choices are found.
const onceSeconds = await timed(() => replay({ ...trace, whatIfs: [] }));
const curveSeconds = await timed(() => lruCurve(trace));
const figures = [{ what: `λ 0, lru, all ${info.experts - info.topK + 1} capacities in one pass`, seconds: curveSeconds }];
for (const [what, fields] of WHAT_IFS) {
  figures.push({ what, seconds: (await timed(() => replay({ ...trace, whatIfs: [spec(info, fields)] }))) - onceSeconds });
}
const out = figures.map(({ what, seconds }) => ({ what, eventsPerSecond: Math.round(events / seconds) }));
if (values.json) process.stdout.write(`${JSON.stringify({ events, experts: info.experts, topK: info.topK, onceSeconds, figures: out }, null, 2)}\n`);
else {
  process.stdout.write(`${events} events, ${info.topK} of ${info.experts} experts; once per call ${onceSeconds.toFixed(3)} s\n\n| what-if | million events a second |\n|---|---|\n`);
  for (const { what, eventsPerSecond } of out) process.stdout.write(`| ${what} | ${(eventsPerSecond / 1e6).toFixed(2)} |\n`);
}
