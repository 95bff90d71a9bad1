/**
 * What each eviction policy would have missed on recorded routes of large models: per layer, a token's experts as one event,
 * decode rows alone, from an empty cache. Prints a table in Markdown.
 *
 *   node test/bench/recorded-routes.mjs --routes a.route.csv --routes b.route.csv [--capacities 16,32,64] [--json]
 */
import { basename } from 'node:path';
import { moefleet, percent, readFlags, refuse } from './shared.mjs';

const POLICIES = ['lru', 'lfu', 'lfru', 'adaptive', 'belady'];
const values = readFlags({ routes: { type: 'string', multiple: true, default: [] }, capacities: { type: 'string', default: '16,32,64' }, json: { type: 'boolean', default: false } });
if (values.routes.length === 0) refuse('--routes: name a route file, as BigMoeOnEdge or `moefleet engine eval --record-routes` writes it');
const sources = values.routes.map((path) => ({ name: basename(path, '.route.csv'), ...moefleet('replay', '--trace', path, '--capacity', values.capacities, '--policy', POLICIES.join(',')) }));
if (values.json) process.stdout.write(`${JSON.stringify(sources, null, 2)}\n`);
else process.stdout.write(sources.map(section).join('\n'));

function section({ name, experts, topK, layers, events, rows }) {
  const capacities = [...new Set(rows.map((row) => row.capacity))];
  const rate = (policy, capacity) => percent(rows.find((row) => row.policy === policy && row.capacity === capacity).missRate);
  const lines = capacities.map((capacity) => `| ${capacity} | ${POLICIES.map((policy) => rate(policy, capacity)).join(' | ')} |`);
  return `**${name}**: ${layers.length} layers, ${topK} of ${experts} experts, ${events / layers.length} tokens\n\n| capacity | ${POLICIES.join(' | ')} |\n|${'---|'.repeat(POLICIES.length + 1)}\n${lines.join('\n')}\n`;
}
