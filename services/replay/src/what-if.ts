/** The settings a replay tries: every combination that says something of its own. */
import type { Routing, WhatIf } from '@moefleet/edge-agent/engine';
import { TraceError } from './trace-error';
import type { Trace } from './trace';

export type Policy = NonNullable<WhatIf['eviction']>;
export const POLICIES = ['lru', 'lfu', 'lfru', 'adaptive', 'belady'] as const satisfies readonly Policy[];
/** `sensitivity` measures a model, it is no way to run one. */
export const ROUTINGS = ['original', 'cache_prior', 'max_rank', 'cumulative_threshold', 'pruned'] as const satisfies readonly Routing[];
export type ReplayRouting = (typeof ROUTINGS)[number];

export interface Grid {
  routings: readonly ReplayRouting[];
  /** of cache_prior */
  lambdas: readonly number[];
  /** of all but original */
  topJs: readonly number[];
  /** of max_rank */
  maxRanks: readonly number[];
  /** of cumulative_threshold */
  massThresholds: readonly number[];
  policies: readonly Policy[];
  /** of lfu and lfru; 0: uses do not age */
  halfLifeTokens: number;
  /** experts of every layer */
  capacities: readonly number[];
}

/** One setting, the same in every layer. What its routing does not read is null. */
export interface Setting {
  routing: ReplayRouting;
  lambda: number | null;
  topJ: number | null;
  maxRank: number | null;
  massThreshold: number | null;
  policy: Policy;
  halfLifeTokens: number;
  capacity: number;
}

/** Whether it leaves the model its own choice. */
export function bendsNothing({ routing, lambda }: Setting): boolean {
  return routing === 'original' || (routing === 'cache_prior' && lambda === 0);
}

/** Throws TraceError where the trace cannot answer, naming the flag. Belady's bound is left out where the routing bends. */
export function settingsOf(grid: Grid, trace: Trace): Setting[] {
  check(grid, trace);
  const settings: Setting[] = [];
  for (const routing of routingsOf(grid)) {
    for (const policy of grid.policies) {
      for (const capacity of grid.capacities) {
        const setting = { ...routing, policy, capacity, halfLifeTokens: policy === 'lfu' || policy === 'lfru' ? grid.halfLifeTokens : 0 };
        if (policy !== 'belady' || bendsNothing(setting)) settings.push(setting);
      }
    }
  }
  if (settings.length === 0) throw new TraceError('--policy: belady is told which experts come, and a routing that follows the cache changes that; add another policy, or λ 0');
  return settings;
}

type RoutingSetting = Pick<Setting, 'routing' | 'lambda' | 'topJ' | 'maxRank' | 'massThreshold'>;

function routingsOf({ routings, lambdas, topJs, maxRanks, massThresholds }: Grid): RoutingSetting[] {
  const none = { lambda: null, topJ: null, maxRank: null, massThreshold: null };
  return routings.flatMap((routing): RoutingSetting[] => {
    switch (routing) {
      case 'original': return [{ ...none, routing }];
      // At λ 0 topJ protects what nothing threatens.
      case 'cache_prior': return lambdas.flatMap((lambda) => (lambda === 0 ? topJs.slice(0, 1) : topJs).map((topJ) => ({ ...none, routing, lambda, topJ })));
      case 'max_rank': return maxRanks.flatMap((maxRank) => topJs.map((topJ) => ({ ...none, routing, maxRank, topJ })));
      case 'cumulative_threshold': return massThresholds.flatMap((massThreshold) => topJs.map((topJ) => ({ ...none, routing, massThreshold, topJ })));
      case 'pruned': return topJs.map((topJ) => ({ ...none, routing, topJ }));
    }
  });
}

function check({ routings, lambdas, topJs, maxRanks, capacities }: Grid, { source, kind, experts, topK }: Trace): void {
  const refuse = (flag: string, value: string, next: string): never => { throw new TraceError(`${flag}: ${value} ${next}`); };
  for (const capacity of capacities) {
    if (capacity < topK) refuse('--capacity', String(capacity), `is below the ${topK} experts one token of ${source} needs; use ${topK} or more`);
    if (capacity > experts) refuse('--capacity', String(capacity), `is more than the ${experts} experts a layer of ${source} has`);
  }
  const most = topJs.find((topJ) => topJ > topK);
  if (most !== undefined) refuse('--top-j', String(most), `is more than the ${topK} experts a token of ${source} takes; use 0 to ${topK}`);
  const rank = routings.includes('max_rank') ? maxRanks.find((each) => each < topK || each > experts) : undefined;
  if (rank !== undefined) refuse('--max-rank', String(rank), `is outside ${topK} (bends nothing) to ${experts} (any resident expert)`);
  if (routings.includes('pruned') && topJs.includes(0)) refuse('--top-j', '0', 'leaves a token of --routing pruned without experts where all of them miss; use 1 or more');
  if (kind !== 'routes') return;
  const bent = routings.find((routing) => routing !== 'original' && routing !== 'cache_prior');
  const lambda = lambdas.find((each) => each > 0);
  const asked = bent ? `--routing: ${bent}` : routings.includes('cache_prior') && lambda !== undefined ? `--lambda: ${lambda}` : null;
  if (asked) {
    throw new TraceError(`${asked} needs the router's scores, and ${source} is a route file, which holds the chosen experts alone; ask for λ 0, ` +
      'or record scores with `moefleet engine eval --record-windows FILE` or `moefleet windows enable DEVICE`');
  }
}

export function whatIfOf(setting: Setting, layers: number): WhatIf {
  return {
    routing: setting.routing, lambda: setting.lambda ?? 0, topJ: setting.topJ ?? 0, ...(setting.maxRank === null ? {} : { maxRank: setting.maxRank }),
    massThreshold: setting.massThreshold ?? 0, eviction: setting.policy, evictionHalfLifeTokens: setting.halfLifeTokens, generation: 0,
    capacities: new Array<number>(layers).fill(setting.capacity),
  };
}
