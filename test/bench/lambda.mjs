/**
 * What the pull towards resident experts buys on one device: misses, flash bytes and tokens/s of λ against plain LRU
 * (λ = 0) at the same capacity, with what it costs in perplexity. Pairs run alternately in one session, each from a
 * cold cache in a process of its own; medians and ratios are reported. The reference model is widened first, so that
 * an expert has a realistic size and reads go past every cache of the operating system (O_DIRECT).
 *
 *   node test/bench/lambda.mjs [--width 4096] [--capacities 8,16] [--lambdas 0.1,0.2,0.3] [--top-j 2] [--runs 5] [--tokens 96] [--json]
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const root = join(new URL('.', import.meta.url).pathname, '..', '..');
const model = join(root, 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');
const text = join(root, 'test', 'fixtures', 'wikitext.txt');
const { values } = parseArgs({
  options: {
    width: { type: 'string', default: '4096' }, capacities: { type: 'string', default: '8,16' },
    lambdas: { type: 'string', default: '0.1,0.2,0.3' }, 'top-j': { type: 'string', default: '2' },
    runs: { type: 'string', default: '5' }, tokens: { type: 'string', default: '96' }, json: { type: 'boolean', default: false },
  },
});
const numbers = (list) => list.split(',').map(Number);
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const moefleet = (...args) =>
  JSON.parse(execFileSync(process.execPath, [join(root, 'services', 'cli', 'bin', 'moefleet.js'), ...args, '--json'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 }));

const prompts = readFileSync(text, 'utf8').split('\n').filter((line) => line.split(' ').length > 60)
  .map((line) => line.trim().split(' ').slice(0, 24).join(' '));
const folder = mkdtempSync(join(tmpdir(), 'moefleet-bench-'));
const wide = join(folder, 'wide.gguf');
try {
  process.stderr.write(`widening the reference model to ${values.width}\n`);
  moefleet('model', 'widen', model, wide, '--width', values.width);
  const info = moefleet('engine', 'inspect', '--model', wide);
  const rows = [];
  for (const capacity of numbers(values.capacities)) {
    for (const lambda of numbers(values.lambdas)) {
      const pairs = [];
      for (let run = 0; run < Number(values.runs); run++) {
        process.stderr.write(`capacity ${capacity}, lambda ${lambda}: pair ${run + 1} of ${values.runs}\n`);
        const generate = (strength) => moefleet('engine', 'generate', '--model', wide, '--prompt', prompts[run % prompts.length], '--tokens', values.tokens,
          '--threads', '1', '--capacity', String(capacity), '--lambda', String(strength), '--top-j', values['top-j'],
          // At temperature 0 a small model repeats itself, and so its experts: that flatters every cache.
          '--temperature', '0.8', '--seed', String(run + 1));
        // The order alternates, so that a machine that gets slower or faster favours neither.
        const [first, second] = run % 2 === 0 ? [0, lambda] : [lambda, 0];
        const results = new Map([[first, generate(first)], [second, generate(second)]]);
        pairs.push({ lru: results.get(0), bent: results.get(lambda) });
      }
      const quality = moefleet('engine', 'eval', '--model', model, '--text', text, '--tokens', '8192', '--capacity', String(capacity),
        '--lambda', String(lambda), '--top-j', values['top-j'], '--compare', '--threads', '1');
      rows.push({
        capacity, lambda, topJ: Number(values['top-j']),
        tokensPerSecondLru: median(pairs.map((pair) => pair.lru.tokensPerSecond)),
        tokensPerSecond: median(pairs.map((pair) => pair.bent.tokensPerSecond)),
        speedup: median(pairs.map((pair) => pair.bent.tokensPerSecond / pair.lru.tokensPerSecond)),
        missRateLru: median(pairs.map((pair) => pair.lru.missRate)),
        missRate: median(pairs.map((pair) => pair.bent.missRate)),
        missRatio: median(pairs.map((pair) => pair.bent.missRate / pair.lru.missRate)),
        perplexityLoss: Math.exp(quality.crossEntropyLoss) - 1,
      });
    }
  }
  if (values.json) process.stdout.write(`${JSON.stringify({ expertBytes: info.expertBytes[0], fileBytes: info.fileBytes, runs: Number(values.runs), rows }, null, 2)}\n`);
  else {
    process.stdout.write(`expert ${(info.expertBytes[0] / 2 ** 20).toFixed(2)} MiB, file ${(info.fileBytes / 2 ** 20).toFixed(0)} MiB, ${values.runs} pairs each, medians\n`);
    console.table(rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [key, Number(value.toFixed(4))]))));
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
