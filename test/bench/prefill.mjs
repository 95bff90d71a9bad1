/**
 * What a bound on memory costs while a prompt is read: tokens/s of prefill and the most expert bytes held, for several
 * budgets beyond the cache (`--prefill`), against the unbounded one (a whole layer's experts). Every round runs each
 * budget once, from a cold cache in a process of its own, and every other round in the opposite order; medians of the
 * rounds, and of each round's ratio to its unbounded run. Each round also reads the prompt with every expert in memory, which
 * is what computing it takes. The reference model is widened first, so that an expert has a realistic size; reads go past the
 * page cache (O_DIRECT), and with --disk arrive no faster than from such a disk (as `engine generate --disk`).
 *
 *   node test/bench/prefill.mjs [--width 4096 [--work-dir DIR] | --model FILE] [--capacity 16] [--experts 16,8,4,0]
 *                               [--prompt-tokens 256] [--disk ufs2.1] [--runs 3] [--threads 2] [--json]
 *
 * `--experts`: budgets, in experts of the model; 0 leaves nothing beyond the cache.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fixtures, median, moefleet, numbers, readFlags, refuse, widened } from './shared.mjs';

const { Engine } = createRequire(import.meta.url)('@moefleet/edge-agent/engine');

const values = readFlags({
  width: { type: 'string', default: '4096' }, 'work-dir': { type: 'string' }, model: { type: 'string' }, capacity: { type: 'string', default: '16' },
  experts: { type: 'string', default: '16,8,4,0' }, disk: { type: 'string' }, 'prompt-tokens': { type: 'string', default: '256' },
  runs: { type: 'string', default: '3' }, threads: { type: 'string', default: '2' }, json: { type: 'boolean', default: false },
});
const whole = (name, least) => {
  const value = Number(values[name]);
  return Number.isInteger(value) && value >= least ? value : refuse(`--${name}: ${values[name]} is not an integer of at least ${least}`);
};

const [runs, promptTokens, capacity] = ['runs', 'prompt-tokens', 'capacity'].map((name) => whole(name, 1));
const sizes = numbers(values, 'experts');
if (sizes.length === 0 || sizes.some((experts) => experts < 0)) refuse(`--experts: expected numbers from 0, found '${values.experts}'`);
const model = values.model ?? widened(whole('width', 1), values['work-dir']);
const info = moefleet('engine', 'inspect', '--model', model, '--capacity', String(capacity));
const expertBytes = info.expertBytes[0];
// 0 bytes would mean a whole layer.
const budgets = [{ name: 'a layer (unbounded)', bytes: 0 }, ...sizes.map((experts) => ({ name: `${experts} experts`, bytes: Math.max(1, Math.floor(experts * expertBytes)) }))];
// About four characters to a token; the engine says how many there were.
const prompt = readFileSync(fixtures.text, 'utf8').slice(0, promptTokens * 4);

/** Seconds to read the prompt with nothing left to read from the disk. */
async function resident() {
  const spec = { generation: 0, routing: 'original', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => info.experts) };
  const engine = await Engine.open({ modelPath: model, contextTokens: promptTokens * 2, threads: Number(values.threads), lanes: 4, directIo: true, prefillBytes: 0, keepAll: false, spec });
  let result;
  for (const requestId of ['cold', 'resident']) {
    result = await engine.generate({ requestId, prompt: engine.tokenize(prompt, true, false), maxTokens: 1, temperature: 0, topP: 1, seed: 0, coldCache: false, captureRouter: false }, () => {});
  }
  await engine.close();
  return result;
}

const rounds = [], computed = [];
for (let run = 0; run < runs; run += 1) {
  const results = new Map();
  for (const budget of run % 2 === 0 ? budgets : [...budgets].reverse()) {
    process.stderr.write(`round ${run + 1} of ${runs}: ${budget.name}\n`);
    results.set(budget, moefleet('engine', 'generate', '--model', model, '--prompt', prompt, '--tokens', '1', '--context', String(promptTokens * 2),
      '--capacity', String(capacity), '--prefill', String(budget.bytes), '--threads', values.threads, ...(values.disk ? ['--disk', values.disk] : [])));
  }
  rounds.push(results);
  computed.push(await resident());
}
const speed = (result) => result.promptTokens / result.prefillSeconds;
const rows = budgets.map((budget) => {
  const of = (figure) => median(rounds.map((results) => figure(results.get(budget))));
  return {
    budget: budget.name, prefillBytes: budget.bytes === 0 ? info.memory.prefillBytes : budget.bytes, tokensPerSecond: of(speed),
    ofUnbounded: median(rounds.map((results) => speed(results.get(budget)) / speed(results.get(budgets[0])))),
    peakExpertBytes: of((result) => result.peakExpertBytes), boundBytes: of((result) => result.memory.cacheBytes + result.memory.prefillBytes),
    flashBytes: of((result) => result.flashBytes), misses: of((result) => result.prefillMisses), stallShare: of((result) => result.stallSeconds / (result.prefillSeconds + result.decodeSeconds)),
  };
});
const out = { expertBytes, fileBytes: info.fileBytes, capacity, cacheBytes: info.memory.cacheBytes, promptTokens: rounds[0].get(budgets[0]).promptTokens, runs, threads: Number(values.threads), disk: values.disk ?? null, residentTokensPerSecond: median(computed.map((result) => result.promptTokens / (Number(result.prefillNs) / 1e9))), rows };
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 2 : 0)} MiB`;
if (values.json) process.stdout.write(`${JSON.stringify(out, null, 2)}\n`);
else {
  process.stdout.write(`expert ${mib(expertBytes)}, file ${mib(info.fileBytes)}, capacity ${capacity} (${mib(out.cacheBytes)}), prompt of ${out.promptTokens} tokens, ${values.threads} threads, ${runs} rounds, medians; every expert in memory: ${out.residentTokensPerSecond.toFixed(1)} tokens/s\n`);
  console.table(Object.fromEntries(rows.map((row) => [row.budget, {
    'tokens/s': Number(row.tokensPerSecond.toFixed(1)), 'of unbounded': Number(row.ofUnbounded.toFixed(3)), 'peak experts': mib(row.peakExpertBytes), bound: mib(row.boundBytes),
    'flash read': mib(row.flashBytes), misses: row.misses, 'stall share': Number(row.stallShare.toFixed(2)),
  }])));
}
