/**
 * Records what the simulator of a fleet is driven by: for each text and setting what the real engine missed, window by
 * window, and what that cost in quality. Two sets of texts: on one the learner's surface is measured, from the other,
 * which shares nothing with it, come the workloads and the truth that the learner is judged by.
 *
 *   node test/bench/learner/record.mjs --out FILE --domain NAME=SURFACE_TEXT,WORKLOAD_TEXT [--domain ...] [--model FILE]
 *     [--tokens 4096] [--capacities 8,12,16,20,24] [--lambdas 0.05,0.1,0.15,0.2,0.3,0.4] [--top-js 1,2] [--threads 1]
 *
 * Goes on where it stopped: what is in the file already is kept.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fixtures, numbers, readFlags, refuse } from '../shared.mjs';

const { Engine, inspectModel, modelHash } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');

const values = readFlags({
  out: { type: 'string' }, domain: { type: 'string', multiple: true, default: [] }, model: { type: 'string', default: fixtures.model },
  tokens: { type: 'string', default: '4096' }, capacities: { type: 'string', default: '8,12,16,20,24' }, lambdas: { type: 'string', default: '0.05,0.1,0.15,0.2,0.3,0.4' },
  'top-js': { type: 'string', default: '1,2' }, threads: { type: 'string', default: '1' },
});
if (!values.out || values.domain.length === 0) refuse('--out FILE and at least one --domain NAME=SURFACE_TEXT,WORKLOAD_TEXT are needed');
const [capacities, lambdas, topJs] = ['capacities', 'lambdas', 'top-js'].map((name) => numbers(values, name));
/** As the surface's: windows of the model's training context. */
const CONTEXT = 256;
const tokens = Number(values.tokens);
const info = await inspectModel(values.model);

const engine = await Engine.open({
  modelPath: values.model, contextTokens: 0, threads: Number(values.threads), lanes: 2, directIo: false, prefillBytes: 0, keepAll: true,
  spec: { routing: 'cache_prior', lambda: 0, topJ: 1, capacities: info.moeLayers.map(() => info.experts), generation: 0 },
});
const recording = existsSync(values.out) ? JSON.parse(readFileSync(values.out, 'utf8')) : {
  model: info.name, modelHash: await modelHash(info), experts: info.experts, topK: info.topK, layers: info.moeLayers.length, context: CONTEXT, tokens, eviction: 'adaptive', points: [],
};
const known = new Set(recording.points.map(keyOf));

function keyOf({ set, domain, capacity, lambda, topJ }) {
  return [set, domain, capacity, lambda, topJ].join('|');
}

async function record(set, domain, text, capacity, lambda, topJ) {
  const key = { set, domain, capacity, lambda, topJ };
  if (known.has(keyOf(key))) return;
  const result = await engine.evaluate({
    tokens: text, context: CONTEXT, stepped: false,
    spec: { routing: 'cache_prior', lambda, topJ, capacities: info.moeLayers.map(() => capacity), generation: 0, eviction: 'adaptive' },
  });
  recording.points.push({
    ...key, massLost: round(result.massLost), layerMissRates: result.perLayer.map(({ missRate }) => round(missRate)),
    misses: result.windows.map((window) => window.misses), nll: result.windows.map(({ nll }) => round(nll, 3)),
  });
  writeFileSync(`${values.out}.part`, print(recording));
  renameSync(`${values.out}.part`, values.out);
}

/** A line for each point, so that a recording can be compared. */
function print({ points, ...head }) {
  return `${JSON.stringify(head).slice(0, -1)},"points":[\n${points.map((point) => JSON.stringify(point)).join(',\n')}\n]}\n`;
}

function round(value, digits = 5) {
  return Number(value.toFixed(digits));
}

const settings = capacities.flatMap((capacity) => [{ capacity, lambda: 0, topJ: 0 },
  ...topJs.flatMap((topJ) => lambdas.map((lambda) => ({ capacity, lambda, topJ })))]);
let done = 0;
for (const one of values.domain) {
  const [, name, surface, workload] = /^([^=]+)=([^,]+),(.+)$/.exec(one) ?? [];
  if (!name) refuse(`--domain: expected NAME=SURFACE_TEXT,WORKLOAD_TEXT, found ${one}`);
  for (const [set, file] of [['surface', surface], ['workload', workload]]) {
    // Four bytes a token are more than any text of ours has; the rest is not needed.
    const text = engine.tokenize(readFileSync(file, 'utf8').slice(0, tokens * 8), true, false).slice(0, tokens + 1);
    if (text.length !== tokens + 1) throw new Error(`${file}: ${text.length - 1} tokens; ${tokens} are needed`);
    for (const { capacity, lambda, topJ } of settings) {
      await record(set, name, text, capacity, lambda, topJ);
      done += 1;
      process.stderr.write(`\r${done} of ${values.domain.length * 2 * settings.length}: ${name}, ${set}, capacity ${capacity}, λ ${lambda}, topJ ${topJ}      `);
    }
  }
}
process.stderr.write('\n');
await engine.close();
