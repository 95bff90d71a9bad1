/**
 * What our hook costs where it has nothing to do: tokens/s with every expert in memory, against the stock library without
 * a hook, and what it costs on top to make a span of every miss.
 *
 * Hook: pairs of short processes in alternating order decode the same text, token by token, several times over; the first
 * time warms up, the others count. The stock library maps the file; it is measured without repacked weights, as the engine
 * runs, and with them, which is its default. Tracing: one engine answers the same request again and again from a cold,
 * bounded cache, alternately traced (spans made, spooled and sent to a collector in this process) and not; reads come
 * from the page cache, so that no disk hides the cost.
 *
 *   node test/bench/hook-overhead.mjs [--width 10240] [--work-dir DIR] [--pairs 9] [--trace-pairs 15] [--tokens 32] [--threads 2] [--json]
 */
import { execFileSync } from 'node:child_process';
import { createServer } from 'node:http';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fixtures, median, percent, readFlags, root, widened } from './shared.mjs';

const require = createRequire(join(root, 'services', 'cli', 'package.json'));
const { Engine, inspectModel, benchToolPath, EVAL_STEP, EVAL_STEP_FIELDS } = require('@moefleet/edge-agent/engine');
const values = readFlags({
  width: { type: 'string', default: '10240' }, 'work-dir': { type: 'string' }, pairs: { type: 'string', default: '9' },
  tokens: { type: 'string', default: '32' }, passes: { type: 'string', default: '4' }, threads: { type: 'string', default: '2' },
  'trace-pairs': { type: 'string', default: '15' }, json: { type: 'boolean', default: false },
  // The child that holds the engine.
  decode: { type: 'string' },
});
const [tokens, passes, threads] = [values.tokens, values.passes, values.threads].map(Number);

const open = async (model, capacity) => {
  const info = await inspectModel(model);
  const spec = { routing: 'cache_prior', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => capacity ?? info.experts), generation: 0 };
  const engine = await Engine.open({ modelPath: model, contextTokens: 128, threads, lanes: 4, directIo: false, prefillBytes: 0, keepAll: false, spec });
  return { engine, spec, text: engine.tokenize(readFileSync(fixtures.text, 'utf8'), false, false) };
};

async function decode(model) {
  const { engine, spec, text } = await open(model);
  const all = new Int32Array(tokens * passes + 1);
  for (let pass = 0; pass < passes; pass++) all.set(text.slice(0, tokens + 1), pass * tokens);
  const { steps } = await engine.evaluate({ tokens: all, context: tokens, spec, stepped: true });
  const field = (name) => Array.from({ length: tokens * passes }, (_, i) => steps[i * EVAL_STEP_FIELDS + EVAL_STEP[name]]);
  process.stdout.write(JSON.stringify({ startNs: field('startNs'), endNs: field('endNs'), misses: field('misses') }));
  await engine.close();
}

/** Median milliseconds of a token after the first pass. */
function tokenMs({ startNs, endNs, misses }) {
  if (misses?.slice(tokens).some((each) => each > 0)) throw new Error('the engine read experts that should have been in memory');
  return median(startNs.map((start, i) => (endNs[i] - start) / 1e6).slice(tokens));
}

const engineMs = (model) => tokenMs(JSON.parse(execFileSync(process.execPath, [new URL(import.meta.url).pathname, '--decode', model,
  '--tokens', values.tokens, '--passes', values.passes, '--threads', values.threads], { encoding: 'utf8' })));
const stockMs = (model, extraBufts) => tokenMs(JSON.parse(execFileSync(benchToolPath(),
  ['stock', model, fixtures.text, values.tokens, values.tokens, values.threads, values.passes, extraBufts ? '1' : '0'], { encoding: 'utf8' })));

function hookOverhead(name, model) {
  const pairs = [];
  for (let pair = 0; pair < Number(values.pairs); pair++) {
    process.stderr.write(`hook, ${name}: pair ${pair + 1} of ${values.pairs}\n`);
    const arms = [['engine', () => engineMs(model)], ['stock', () => stockMs(model, false)], ['repacked', () => stockMs(model, true)]];
    // Every arm comes in every place.
    for (let i = 0; i < pair % arms.length; i++) arms.push(arms.shift());
    pairs.push(Object.fromEntries(arms.map(([arm, run]) => [arm, run()])));
  }
  const over = (arm) => pairs.map((pair) => pair.engine / pair[arm] - 1);
  return {
    model: name, engineMs: median(pairs.map((pair) => pair.engine)), stockMs: median(pairs.map((pair) => pair.stock)),
    stockRepackedMs: median(pairs.map((pair) => pair.repacked)),
    overhead: median(over('stock')), overheadMin: Math.min(...over('stock')), overheadMax: Math.max(...over('stock')),
    overheadOverRepacked: median(over('repacked')),
  };
}

async function tracingOverhead(model) {
  const { MissAccount, OtlpExporter, TraceRecorder, TraceSpool } = await import(join(root, 'edge-agent', 'dist', 'trace', 'index.js')).then((module) => module.default ?? module);
  const log = new Proxy({}, { get: () => () => {} });
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-trace-bench-'));
  const collector = createServer((request, response) => request.resume().on('end', () => response.end())).listen(0);
  const account = new MissAccount();
  const spool = new TraceSpool({ folder, maxBytes: 1 << 28, account, log });
  const exporter = new OtlpExporter({ endpoint: `http://127.0.0.1:${collector.address().port}`, spool, log });
  const recorder = new TraceRecorder({ origin: { deviceId: 'bench', bootId: 'bench', hostName: 'bench', version: '0' }, spool, account, log });
  await spool.start();
  await exporter.start();
  const { engine, text } = await open(model, 13);
  const runs = { traced: [], untraced: [] };
  let misses = 0;
  try {
    for (let pair = 0; pair <= Number(values['trace-pairs']); pair++) {
      process.stderr.write(`tracing: pair ${pair} of ${values['trace-pairs']}\n`);
      for (const arm of pair % 2 ? ['traced', 'untraced'] : ['untraced', 'traced']) {
        recorder.setTraceRatio(arm === 'traced' ? 1 : 0);
        const generate = { requestId: `${arm}-${pair}`, prompt: text.slice(0, 8), maxTokens: tokens, temperature: 0.8, topP: 1, seed: 7, coldCache: true, captureRouter: false };
        const recorded = recorder.begin({ generate, operation: 'chat', traceparent: null, queuedNs: process.hrtime.bigint(), model: { name: 'bench', hash: '00' }, hostStart: 1 });
        const stepMs = [];
        const result = await engine.generate(generate, (step) => {
          recorded.step(step);
          if (step.step > 0) stepMs.push((step.endNs - step.startNs) / 1e6);
        });
        recorded.end({ t: 'ended', result });
        misses = result.decodeMisses;
        // The first pair warms up the page cache and the compiler.
        if (pair > 0) runs[arm].push({ stepMs, decodeMs: result.decodeNs / 1e6 });
      }
    }
  } finally {
    await engine.close();
    await exporter.stop();
    collector.close();
    rmSync(folder, { recursive: true, force: true });
  }
  // Both arms of a pair do the same work step by step, so that a disturbed step spoils one ratio of many.
  const ratios = runs.traced.flatMap(({ stepMs }, i) => stepMs.map((ms, step) => ms / runs.untraced[i].stepMs[step] - 1));
  const totals = runs.traced.map(({ decodeMs }, i) => decodeMs / runs.untraced[i].decodeMs - 1);
  return {
    missesPerToken: misses / Math.max(1, tokens - 1), untracedMs: median(runs.untraced.map(({ decodeMs }) => decodeMs / tokens)),
    tracedMs: median(runs.traced.map(({ decodeMs }) => decodeMs / tokens)),
    overhead: median(totals), overheadMin: Math.min(...totals), overheadMax: Math.max(...totals), overheadOfSteps: median(ratios),
  };
}

async function main() {
  const wide = widened(Number(values.width), values['work-dir']);
  const result = {
    threads, pairs: Number(values.pairs), tokens, countedPasses: passes - 1,
    hook: [hookOverhead(`widened to ${values.width}`, wide), hookOverhead('as it is', fixtures.model)],
    tracing: await tracingOverhead(wide),
  };
  if (values.json) {
    process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
    return;
  }
  process.stdout.write(`Every expert in memory, ${threads} threads, medians of ${result.pairs} pairs; a token takes, in ms:\n`);
  console.table(result.hook.map((row) => ({
    'reference model': row.model, engine: row.engineMs.toFixed(3), stock: row.stockMs.toFixed(3), 'stock, repacked': row.stockRepackedMs.toFixed(3),
    'hook costs': percent(row.overhead), spread: `${percent(row.overheadMin)} to ${percent(row.overheadMax)}`, 'against repacked': percent(row.overheadOverRepacked), 'at most 3%': row.overhead <= 0.03 ? 'yes' : 'NO',
  })));
  const { tracing } = result;
  process.stdout.write(`A span of every miss (${tracing.missesPerToken.toFixed(1)} a token): ${tracing.untracedMs.toFixed(2)} ms a token without, ${tracing.tracedMs.toFixed(2)} with: ` +
    `${percent(tracing.overhead)} (${percent(tracing.overheadMin)} to ${percent(tracing.overheadMax)}; by step ${percent(tracing.overheadOfSteps)}); at most 2%: ${tracing.overhead <= 0.02 ? 'yes' : 'NO'}\n`);
}

if (values.decode) await decode(values.decode);
else await main();
