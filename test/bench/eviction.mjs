/**
 * What the eviction policies are worth: misses of each at the model's own routing, as a share of the way from LRU to
 * Belady's bound; and misses and perplexity of each where λ bends the router towards what the policy keeps. Routes are
 * recorded from the model on each text, or read from files. The bound is that of the recorded routes, so it is there at
 * λ 0 alone: under a pull the policy has a say in what is asked for.
 *
 *   node test/bench/eviction.mjs [--model FILE] [--text FILE ...] [--routes FILE ...] [--tokens 4096] [--capacities 8,13,16,24]
 *                                [--route-capacities 16,32] [--lambdas 0.15,0.3] [--top-js 1,2] [--threads 1] [--json]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fixtures, moefleet, numbers, percent, readFlags } from './shared.mjs';

const values = readFlags({
  model: { type: 'string', default: fixtures.model }, text: { type: 'string', multiple: true, default: fixtures.texts },
  routes: { type: 'string', multiple: true, default: [] },
  tokens: { type: 'string', default: '4096' }, capacities: { type: 'string', default: '8,13,16,24' },
  'route-capacities': { type: 'string', default: '16,32' },
  lambdas: { type: 'string', default: '0.15,0.3' }, 'top-js': { type: 'string', default: '1,2' },
  threads: { type: 'string', default: '1' }, json: { type: 'boolean', default: false },
});
const [capacities, routeCapacities, lambdas, topJs] = ['capacities', 'route-capacities', 'lambdas', 'top-js'].map((name) => numbers(values, name));
/** Name, flags of `engine eval`, and policy and flags of `engine simulate`. */
const POLICIES = [
  ['lru', ['lru']], ['lfu', ['lfu']], ['lfu, half-life 64', ['lfu', '--half-life', '64']], ['lfru', ['lfru']], ['adaptive', ['adaptive']],
];
const evaluate = (text, ...flags) => moefleet('engine', 'eval', '--model', values.model, '--text', text, '--tokens', values.tokens, '--threads', values.threads, ...flags);

/** Rows `{source, capacity, policy, missRate, gapShare}`; gapShare is 0 for LRU and 1 for Belady. */
function compare(source, routes, sizes, adaptiveOf) {
  return sizes.flatMap((capacity) => {
    const simulate = (policy, ...flags) => moefleet('engine', 'simulate', '--routes', routes, '--policy', policy, '--capacity', String(capacity), ...flags)[0].missRate;
    const rates = Object.fromEntries([
      ...POLICIES.map(([name, [policy, ...flags]]) => [name, simulate(policy, ...flags)]), ['belady', simulate('belady')],
    ]);
    if (adaptiveOf) {
      rates['adaptive, routes alone'] = rates.adaptive;
      rates.adaptive = adaptiveOf(capacity);
    }
    const gap = rates.lru - rates.belady;
    return Object.entries(rates).map(([policy, missRate]) => ({ source, capacity, policy, missRate, gapShare: gap > 0 ? (rates.lru - missRate) / gap : null }));
  });
}

const folder = mkdtempSync(join(tmpdir(), 'moefleet-bench-'));
try {
  const own = values.text.flatMap((text) => {
    process.stderr.write(`${basename(text)}: λ 0\n`);
    const routes = join(folder, `${basename(text)}.route.csv`);
    evaluate(text, '--record-routes', routes);
    // The engine has the router's scores; a route file has not.
    return compare(basename(text), routes, capacities, (capacity) => evaluate(text, '--capacity', String(capacity), '--eviction', 'adaptive').missRate);
  });
  const recorded = values.routes.flatMap((routes) => compare(basename(routes), routes, routeCapacities, null));
  const bent = values.text.flatMap((text) => lambdas.flatMap((lambda) => topJs.flatMap((topJ) => capacities.flatMap((capacity) => {
    process.stderr.write(`${basename(text)}: λ ${lambda}, topJ ${topJ}, capacity ${capacity}\n`);
    return POLICIES.map(([policy, [eviction, ...flags]]) => {
      const { missRate, perplexity } = evaluate(text, '--capacity', String(capacity), '--lambda', String(lambda), '--top-j', String(topJ), '--eviction', eviction, ...flags);
      return { source: basename(text), lambda, topJ, capacity, policy, missRate, perplexity };
    });
  }))));
  process.stdout.write(values.json ? `${JSON.stringify({ own, recorded, bent }, null, 2)}\n` : report(own, recorded, bent));
} finally {
  rmSync(folder, { recursive: true });
}

function report(own, recorded, bent) {
  const lines = ['| source | capacity | policy | miss rate | of the way to Belady |', '|---|---|---|---|---|',
    ...[...own, ...recorded].map((row) => `| ${row.source} | ${row.capacity} | ${row.policy} | ${percent(row.missRate)} | ${row.gapShare === null ? '-' : row.gapShare.toFixed(3)} |`)];
  if (bent.length > 0) {
    lines.push('', '| source | λ | topJ | capacity | policy | miss rate | perplexity |', '|---|---|---|---|---|---|---|',
      ...bent.map((row) => `| ${row.source} | ${row.lambda} | ${row.topJ} | ${row.capacity} | ${row.policy} | ${percent(row.missRate)} | ${row.perplexity.toFixed(3)} |`));
  }
  return `${lines.join('\n')}\n`;
}
