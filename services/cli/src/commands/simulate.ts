/** `moefleet engine simulate`: a replay at the model's own choice, held against the bound that no policy passes. */
import { type Command, Option } from 'commander';
import { type Policy, POLICIES, type Trace, traceOfRoutes } from '@moefleet/replay';
import { integerFrom, listOf, namesOf, numberFrom } from '../argument';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { fixed, percent, table } from '../table';
import { readTextFile } from '../text-file';
import { asUsage, replayGrid } from './replay';

interface SimulateFlags { routes: string; policy: Policy[]; capacity: number | number[]; halfLife: number; phase?: number; perLayer?: boolean; }

interface SimulatedRow {
  policy: Policy; capacity: number; references: number; misses: number; missRate: number;
  perLayer?: { layer: number; references: number; misses: number; missRate: number }[];
}

export function addSimulate(engine: Command, context: Context): void {
  const command = engine.command('simulate')
    .description('what each eviction policy would have missed on recorded routes, and what none could have avoided')
    .requiredOption('--routes <file>', 'route file, as BigMoeOnEdge and `engine eval --record-routes` write it')
    .addOption(new Option('--policy <names>', 'a,b,...: which to compare').argParser(namesOf(POLICIES)).default([...POLICIES], 'all'))
    .addOption(new Option('--capacity <n>', 'experts per layer that the cache holds; a,b,... for several').argParser(listOf(integerFrom(1, 65_536))).makeOptionMandatory())
    .addOption(new Option('--half-life <tokens>', 'lfu, lfru: a use counts half after this many tokens; 0: uses do not age').argParser(numberFrom(0, 1e12)).default(0))
    .addOption(new Option('--phase <n>', 'which rows of the file (default: those of decode, recorded token by token)').argParser(integerFrom(0, 255)))
    .option('--per-layer', 'also each layer\'s figures')
    .addHelpText('after', `
Every layer goes through the cache of the engine itself, from empty: a token's experts are looked up, touched, admitted
and others evicted as one event. Routes hold no router scores, so \`adaptive\` learns from the experts used alone. \`belady\` knows the future: it evicts what is needed last, and no policy misses less.
A line '# capacity layer=3 experts=12' between the rows changes a layer's capacity from its next event on, as a spec or
memory pressure did while it was recorded.
With lru and belady among the policies the table says how much of the way between them each one goes.

Examples:
  moefleet engine simulate --routes phone.route.csv --capacity 16,32,64
  moefleet engine simulate --routes phone.route.csv --policy lru,lfu,belady --capacity 32 --half-life 64 --json
  moefleet engine eval --model model.gguf --text unseen.txt --record-routes own.route.csv
  moefleet engine simulate --routes own.route.csv --capacity 8,16 --per-layer
`);
  addCommonOptions(command, { operator: false }).action(async (flags: SimulateFlags, self: Command) => {
    const routes = await asUsage(() => traceOfRoutes(flags.routes, readTextFile('--routes', flags.routes), flags.phase ?? null));
    const rows = await simulate(flags, routes, context);
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(rows) : simulateText(flags, routes, rows));
  });
}

async function simulate(flags: SimulateFlags, routes: Trace, context: Context): Promise<SimulatedRow[]> {
  const own = { routings: ['original'], lambdas: [], topJs: [], maxRanks: [], massThresholds: [] } as const;
  // A cache that holds more than there is holds all.
  const capacities = [...new Set([flags.capacity].flat().map((capacity) => Math.min(capacity, routes.experts)))];
  const rows = await replayGrid(context, routes, { ...own, policies: flags.policy, halfLifeTokens: flags.halfLife, capacities });
  const inOrder = capacities.flatMap((capacity) => rows.filter((row) => row.capacity === capacity));
  return inOrder.map(({ policy, capacity, slots, misses, missRate, perLayer }) => ({
    policy, capacity, references: slots, misses, missRate,
    ...(flags.perLayer ? { perLayer: perLayer.map((layer) => ({ layer: layer.layer, references: layer.slots, misses: layer.misses, missRate: layer.missRate })) } : {}),
  }));
}

function simulateText(flags: SimulateFlags, routes: Trace, rows: SimulatedRow[]): string {
  const events = routes.layerEvents.reduce((sum, each) => sum + each, 0);
  const head = `${flags.routes}: ${events} events in ${routes.layers.length} layers, ${routes.topK} of ${routes.experts} experts each, phase ${routes.phase}\n\n`;
  const total = table(['POLICY', 'CAPACITY', 'REFERENCES', 'MISSES', 'MISS RATE', 'OF THE WAY TO BELADY'], rows.map((row) => [
    row.policy, String(row.capacity), String(row.references), String(row.misses), percent(row.missRate, 2), fixed(gapShare(row, rows), 3),
  ]), [1, 2, 3, 4, 5]);
  const layers = rows.flatMap((row) => (row.perLayer ?? []).map((layer) => [
    row.policy, String(row.capacity), String(layer.layer), String(layer.references), String(layer.misses), percent(layer.missRate, 2),
  ]));
  return head + total + (layers.length > 0 ? `\n${table(['POLICY', 'CAPACITY', 'LAYER', 'REFERENCES', 'MISSES', 'MISS RATE'], layers, [1, 2, 3, 4, 5])}` : '');
}

/** 0 where a policy misses as LRU does, 1 where it misses as Belady does; null where there is no such way. */
function gapShare(row: SimulatedRow, rows: readonly SimulatedRow[]): number | null {
  const of = (policy: Policy) => rows.find((other) => other.policy === policy && other.capacity === row.capacity)?.misses;
  const [lru, belady] = [of('lru'), of('belady')];
  return lru === undefined || belady === undefined || lru === belady ? null : (lru - row.misses) / (lru - belady);
}
