/**
 * Measures how far a replay is from the engine, and writes calibration.json. For each model, text and setting: the scores
 * are recorded at λ 0, exactly and at a byte each; each setting is replayed from them; and the same tokens go through the
 * engine under that setting, closed-loop, by batched evaluation from an empty cache.
 *
 *   node services/replay/calibrate.mjs [--tokens 1024] [--skip 4096] [--threads 1] [--models FILE,...] [--texts FILE,...] [--out FILE]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';

const root = join(new URL('.', import.meta.url).pathname, '..', '..');
const require = createRequire(import.meta.url);
const { Engine, inspectModel, quantise, replay } = require('@moefleet/edge-agent/engine');
const fixture = (name) => join(root, 'test', 'fixtures', name);
const list = (text) => text.split(',').filter(Boolean);

const { values } = parseArgs({
  options: {
    tokens: { type: 'string', default: '1024' }, skip: { type: 'string', default: '4096' }, threads: { type: 'string', default: '1' },
    models: { type: 'string', default: ['tinymoe-17m-q8_0.gguf', 'tinyolmoe-22m-q8_0.gguf'].map(fixture).join(',') },
    texts: { type: 'string', default: ['wikitext.txt', 'code.txt', 'math.txt'].map(fixture).join(',') },
    out: { type: 'string', default: join(root, 'services', 'replay', 'calibration.json') },
  },
});
const tokens = Number(values.tokens);
const skip = Number(values.skip);
const CONTEXT = 256;

/** Settings by model: a quarter and half of the experts. */
function settingsOf({ experts, topK }) {
  const capacities = [0.25, 0.5].map((share) => Math.max(topK, Math.round(experts * share)));
  const bent = [
    ...[0.05, 0.1, 0.2, 0.3, 0.5].map((lambda) => ({ routing: 'cache_prior', lambda, topJ: 2 })),
    ...[0.1, 0.3].map((lambda) => ({ routing: 'cache_prior', lambda, topJ: 1 })),
    { routing: 'max_rank', lambda: 0, topJ: 2, maxRank: 2 * topK }, { routing: 'cumulative_threshold', lambda: 0, topJ: 2, massThreshold: 0.6 },
    { routing: 'pruned', lambda: 0, topJ: 2 },
  ];
  return [{ routing: 'original', lambda: 0, topJ: 0 }, ...bent].flatMap((setting) => capacities.map((capacity) => ({ ...setting, capacity })));
}

const specOf = ({ capacity, ...setting }, layers, eviction) => ({ ...setting, generation: 0, capacities: new Array(layers).fill(capacity), eviction });

const rates = (layers) => {
  const sum = (of) => layers.reduce((total, layer) => total + of(layer), 0);
  const slots = sum((layer) => layer.hits + layer.misses + layer.dropped);
  return { missRate: sum((layer) => layer.misses) / slots, swapRate: sum((layer) => layer.swaps) / slots, dropRate: sum((layer) => layer.dropped) / slots };
};

const points = (share) => Number((share * 100).toFixed(3));

async function measure(model, text) {
  const info = await inspectModel(model);
  const layers = info.moeLayers.length;
  const first = specOf({ routing: 'original', lambda: 0, topJ: 0, capacity: info.experts }, layers, 'lru');
  const engine = await Engine.open({ modelPath: model, contextTokens: CONTEXT, threads: Number(values.threads), lanes: 0, directIo: false, prefillBytes: 0, keepAll: true, spec: first });
  try {
    const ids = engine.tokenize(readFileSync(text, 'utf8'), false, false).slice(skip, skip + tokens + 1);
    const evaluate = (spec, recordScores) => engine.evaluate({ tokens: ids, context: CONTEXT, spec, stepped: false, recordScores });
    const { scores } = await evaluate(first, true);
    const trace = { experts: info.experts, topK: info.topK, layerEvents: new Array(layers).fill(tokens) };
    const rows = quantise(scores, info.experts);
    const settings = settingsOf(info);
    const eviction = 'adaptive';
    const specs = settings.map((setting) => specOf(setting, layers, eviction));
    const exact = await replay({ ...trace, scores, whatIfs: specs });
    const rounded = await replay({ ...trace, rows, rowsMask: true, whatIfs: specs });
    const runs = [];
    for (const [i, setting] of settings.entries()) {
      const closed = await evaluate(specs[i], false);
      const [open, coarse] = [rates(exact[i]), rates(rounded[i])];
      runs.push({
        model: basename(model), text: basename(text), ...setting, eviction, closedMissRate: closed.missRate, openMissRate: open.missRate, openSwapRate: open.swapRate, openDropRate: open.dropRate,
        openLoopErrorPoints: points(open.missRate - closed.missRate), quantisationErrorPoints: points(coarse.missRate - open.missRate),
      });
      process.stderr.write(`${JSON.stringify(runs.at(-1))}\n`);
    }
    return runs;
  } finally {
    await engine.close();
  }
}

/** Runs to come are not among those that were measured: the band is half as wide again as what held these. */
const MARGIN = 1.5;

/** What a setting changes against the record: selections outside of the model's own, and those that are dropped. */
const changed = (run) => run.openSwapRate + run.openDropRate;

/** The narrowest band floor + slope x changed that holds every error: for each slope the least floor, by the mean width. */
function fit(runs) {
  let best = null;
  for (let slope = 0; slope <= 20; slope += 0.05) {
    const floor = Math.max(0, ...runs.map((run) => Math.abs(run.openLoopErrorPoints) - slope * changed(run)));
    const width = runs.reduce((sum, run) => sum + floor + slope * changed(run), 0) / runs.length;
    if (!best || width < best.width - 1e-9) best = { floor, slope, width };
  }
  return best;
}

const runs = [];
for (const model of list(values.models)) for (const text of list(values.texts)) runs.push(...await measure(model, text));
const bent = runs.filter((run) => run.routing !== 'original');
const { floor, slope } = fit(bent);
const most = (of) => Math.max(...runs.map((run) => Math.abs(of(run))));
const calibration = {
  how: `services/replay/calibrate.mjs: ${tokens} tokens of each text from token ${skip} on, windows of ${CONTEXT}, recorded at λ 0, eviction adaptive, closed-loop by batched evaluation; floor and slope ${MARGIN} times what holds all ${bent.length} bent runs`,
  openLoop: { floorPoints: Number((MARGIN * floor + 0.0005).toFixed(3)), slopePoints: Number((MARGIN * slope).toFixed(2)), mostChanged: most(changed), mostErrorPoints: most((run) => run.openLoopErrorPoints) },
  quantisation: { mostPoints: most((run) => run.quantisationErrorPoints) },
  runs,
};
const text = JSON.stringify({ ...calibration, runs: undefined }, null, 1).slice(0, -2);
writeFileSync(values.out, `${text},\n "runs": [\n${runs.map((run) => `  ${JSON.stringify(run)}`).join(',\n')}\n ]\n}\n`);
const errors = (chosen, of) => {
  const each = chosen.map((run) => Math.abs(of(run)));
  return { runs: each.length, meanPoints: Number((each.reduce((sum, points) => sum + points, 0) / each.length).toFixed(3)), mostPoints: Math.max(...each) };
};
const openLoop = (run) => run.openLoopErrorPoints;
const lambdas = [...new Set(bent.map(({ lambda }) => lambda))].filter((lambda) => lambda > 0).sort((a, b) => a - b);
const summary = {
  all: errors(bent, openLoop), byLambda: Object.fromEntries(lambdas.map((lambda) => [lambda, errors(bent.filter((run) => run.lambda === lambda), openLoop)])),
  quantisation: errors(runs, (run) => run.quantisationErrorPoints),
};
process.stdout.write(`${JSON.stringify({ ...calibration, runs: undefined, errors: summary }, null, 2)}\n`);
