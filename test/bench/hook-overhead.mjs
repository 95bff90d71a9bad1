/**
 * What our hook costs where it has nothing to do, i.e. with every expert in memory, and what it costs on top to make a span
 * of every miss.
 *
 * Hook: in each of several processes the engine, the same weights in the same memory without a hook, the same stopping at
 * each router for a hook that does nothing, and the stock library on the mapped file decode the same window of a text in
 * turns, over and over. A window of the engine is held against those of the others before and after it; a process counts as
 * one measurement, the median of its windows, once the engine trusts its layers to miss nothing; the figure is the median of
 * the processes, with its interval from their order, since a disturbed process may be off by several times what is measured.
 * Where weights lie is no matter of the hook, but of memory, and told beside it. None are repacked.
 *
 * Tracing: one engine answers the same request again and again from a cold, bounded cache, alternately traced (spans made,
 * spooled and sent to a collector in this process) and not; reads come from the page cache, so that no disk hides the cost. A
 * pair of answers counts as one measurement, the median of its steps.
 *
 *   node test/bench/hook-overhead.mjs [--widths 0,10240] [--work-dir DIR] [--pairs 15] [--trace-pairs 15] [--tokens 32] [--threads 2] [--json]
 *
 * A width of 0 is the model as it is. The hook takes --seconds (6) for each process, besides loading; a trace pair about one.
 */
import { execFileSync } from 'node:child_process';
import { createServer } from 'node:http';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { benchTool, fixtures, meanInterval, median, medianInterval, numbers, percent, readFlags, root, widened } from './shared.mjs';

const require = createRequire(join(root, 'services', 'cli', 'package.json'));
const { Engine, inspectModel } = require('@moefleet/edge-agent/engine');
const values = readFlags({
  widths: { type: 'string', default: '0,10240' }, 'work-dir': { type: 'string' }, pairs: { type: 'string', default: '15' },
  tokens: { type: 'string', default: '32' }, seconds: { type: 'string', default: '6' }, threads: { type: 'string', default: '2' },
  'trace-pairs': { type: 'string', default: '15' }, json: { type: 'boolean', default: false },
});
const [tokens, threads, seconds, tracePairs] = [values.tokens, values.threads, values.seconds, values['trace-pairs']].map(Number);
const HOOK_LIMIT = 0.03;
const TRACE_LIMIT = 0.02;

const open = async (model, capacity) => {
  const info = await inspectModel(model);
  const spec = { routing: 'cache_prior', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => capacity), generation: 0 };
  const engine = await Engine.open({ modelPath: model, contextTokens: 128, threads, lanes: 4, directIo: false, prefillBytes: 0, keepAll: false, spec });
  return { engine, text: engine.tokenize(readFileSync(fixtures.text, 'utf8'), false, false) };
};

/** Milliseconds of a token in each window, without its first tokens: the threads of the arm before still spin then. */
function windowsOf(ns) {
  const settled = Math.min(4, tokens >> 1);
  return Array.from({ length: ns.length / tokens }, (_, window) => median(ns.slice(window * tokens + settled, (window + 1) * tokens)) / 1e6);
}

/** The first window reads the experts, and for 128 tokens after it the engine stops at every layer, since it might miss. */
const SETTLING = 1 + Math.ceil(128 / tokens);

/** One process. */
function hookRun(model, passes) {
  const { misses, ...arms } = JSON.parse(execFileSync(benchTool(), ['hook', model, fixtures.text, tokens, threads, passes].map(String), { encoding: 'utf8', maxBuffer: 1 << 28 }));
  if (misses.slice(tokens).some((each) => each > 0)) throw new Error('the engine read experts that should have been in memory');
  const windows = Object.fromEntries(Object.entries(arms).map(([name, ns]) => [name, windowsOf(ns)]));
  const engine = windows.engine.slice(SETTLING);
  const over = (list) => median(engine.map((ms, i) => ms / ((list[i + SETTLING - 1] + list[i + SETTLING]) / 2) - 1));
  return {
    engineMs: median(engine), unhookedMs: median(windows.unhooked), mappedMs: median(windows.mapped),
    over: over(windows.unhooked), overStops: over(windows.stops), overMapped: over(windows.mapped),
  };
}

function hookOverhead(width) {
  const model = width === 0 ? fixtures.model : widened(width, values['work-dir']);
  const name = width === 0 ? 'as it is' : `widened to ${width}`;
  const trial = hookRun(model, SETTLING + 1);
  const passes = SETTLING + Math.max(6, Math.round((seconds * 1000) / (4 * tokens * trial.unhookedMs)));
  const runs = Array.from({ length: Number(values.pairs) }, (_, run) => {
    process.stderr.write(`hook, ${name}: process ${run + 1} of ${values.pairs}\n`);
    return hookRun(model, passes);
  });
  const middle = (key) => median(runs.map((run) => run[key]));
  const interval = (key) => medianInterval(runs.map((run) => run[key]));
  return {
    model: name, windows: passes - SETTLING, engineMs: middle('engineMs'), unhookedMs: middle('unhookedMs'), mappedMs: middle('mappedMs'),
    overhead: interval('over'), overheadBeyondStops: interval('overStops'), overMapped: interval('overMapped'),
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
    for (let pair = 0; pair <= tracePairs; pair++) {
      process.stderr.write(`tracing: pair ${pair} of ${tracePairs}\n`);
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
  const pairs = runs.traced.map(({ stepMs }, i) => median(stepMs.map((ms, step) => ms / runs.untraced[i].stepMs[step] - 1)));
  return {
    missesPerToken: misses / Math.max(1, tokens - 1), untracedMs: median(runs.untraced.map(({ decodeMs }) => decodeMs / tokens)),
    tracedMs: median(runs.traced.map(({ decodeMs }) => decodeMs / tokens)), overhead: meanInterval(pairs),
  };
}

const resolved = ({ middle, low, high }) => `${percent(middle)} (${percent(low)} to ${percent(high)})`;
/** Within a limit if the whole interval is. */
const within = ({ low, high }, limit) => (high <= limit ? 'yes' : low > limit ? 'NO' : 'not resolved');

async function main() {
  benchTool();
  const hook = numbers(values, 'widths').map(hookOverhead);
  const tracing = tracePairs > 0 ? await tracingOverhead(widened(10240, values['work-dir'])) : null;
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ threads, processes: Number(values.pairs), tokens, hook, tracing }, null, 2)}\n`);
    return;
  }
  process.stdout.write(`Every expert in memory, ${threads} threads, ${values.pairs} processes, 95% intervals; a token takes, in ms:\n`);
  console.table(hook.map((row) => ({
    'reference model': row.model, engine: row.engineMs.toFixed(3), unhooked: row.unhookedMs.toFixed(3), 'file mapped': row.mappedMs.toFixed(3),
    'hook costs': resolved(row.overhead), 'beyond its stops': resolved(row.overheadBeyondStops), 'engine over file mapped': resolved(row.overMapped),
    'hook at most 3%': within(row.overhead, HOOK_LIMIT),
  })));
  if (tracing === null) return;
  process.stdout.write(`A span of every miss (${tracing.missesPerToken.toFixed(1)} a token): ${tracing.untracedMs.toFixed(2)} ms a token without, ${tracing.tracedMs.toFixed(2)} with: ` +
    `${resolved(tracing.overhead)}; at most 2%: ${within(tracing.overhead, TRACE_LIMIT)}\n`);
}

await main();
