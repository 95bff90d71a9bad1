/**
 * The routings that can be learned. Whatever the routing, `lambda` of a setting says how far it bends, from 0, the model's
 * own choice, to 1, so that one surface, one walk and one choice serve for all: it is λ of `cache_prior`, the softmax mass of
 * `cumulative_threshold`, and the share of the ranks beyond top-K that `max_rank` takes residents from. `pruned` bends by
 * topJ alone, so it knows 1 only. Misses fall and losses rise along it. Here it becomes what a device is told, and back.
 */
import { Routing, type RoutingMethod, routingMethod, routingText } from '@moefleet/proto';
import { maxRankAt, strengthOfMaxRank } from '@moefleet/runtime';
import type { ModelShape, Setting } from './setting';

/** Those of the routings that bend. */
export const ROUTING_NAMES = ['cache_prior', 'max_rank', 'cumulative_threshold', 'pruned'] as const satisfies readonly RoutingMethod[];

type Ranks = Pick<ModelShape, 'topK' | 'experts'>;

/** As a device is told and tells; what its routing does not read is unset. */
export interface RoutingFields { readonly routing: Routing; readonly lambda: number; readonly topJ: number; readonly maxRank?: number | undefined; readonly massThreshold?: number | undefined }

/** λ of a proposal has two digits. */
const HUNDREDTHS = Array.from({ length: 100 }, (_, i) => (i + 1) / 100);

/** Every λ above 0 that a device can be given, ascending. */
export function strengths(routing: Routing, ranks: Ranks): readonly number[] {
  switch (routing) {
    case Routing.ROUTING_MAX_RANK: return Array.from({ length: ranks.experts - ranks.topK }, (_, i) => strengthOfMaxRank(ranks.topK + 1 + i, ranks));
    case Routing.ROUTING_PRUNED: return [1];
    default: return HUNDREDTHS;
  }
}

/** The highest of a device that counts as λ: a method without a strength that a device could lower is as λ 1 to it. */
export function deviceLambda({ routing, lambda }: Pick<Setting, 'routing' | 'lambda'>): number {
  return lambda === 0 || routing === Routing.ROUTING_CACHE_PRIOR ? lambda : 1;
}

export function fieldsOf({ routing, lambda, topJ }: Omit<Setting, 'capacities'>, ranks: Ranks): RoutingFields {
  if (lambda === 0) return { routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ };
  switch (routing) {
    case Routing.ROUTING_MAX_RANK: return { routing, lambda: 0, topJ, maxRank: maxRankAt(lambda, ranks) };
    case Routing.ROUTING_CUMULATIVE_THRESHOLD: return { routing, lambda: 0, topJ, massThreshold: lambda };
    case Routing.ROUTING_PRUNED: return { routing, lambda: 0, topJ };
    default: return { routing, lambda, topJ };
  }
}

/** null for a routing that is not known here. */
export function settingOfFields({ routing, lambda, topJ, maxRank, massThreshold }: RoutingFields, capacities: readonly number[], ranks: Ranks): Setting | null {
  const bent = (strength: number): Setting => ({ routing: strength > 0 ? routing : Routing.ROUTING_CACHE_PRIOR, lambda: strength, topJ, capacities });
  switch (routing) {
    case Routing.ROUTING_ORIGINAL: return bent(0);
    case Routing.ROUTING_UNSPECIFIED: return { ...bent(lambda), routing: Routing.ROUTING_CACHE_PRIOR };
    case Routing.ROUTING_CACHE_PRIOR: return bent(lambda);
    case Routing.ROUTING_MAX_RANK: return bent(strengthOfMaxRank(maxRank || ranks.experts, ranks));
    case Routing.ROUTING_CUMULATIVE_THRESHOLD: return massThreshold === undefined ? null : bent(massThreshold);
    case Routing.ROUTING_PRUNED: return bent(1);
    default: return null;
  }
}

/** For people: what λ is of, where only λ is told. */
export function strengthText({ routing, lambda }: Pick<Setting, 'routing' | 'lambda'>): string {
  return lambda === 0 || routing === Routing.ROUTING_CACHE_PRIOR ? `λ ${lambda}` : `${routingMethod(routing) ?? `routing ${routing}`} at a strength of ${lambda.toFixed(2)}`;
}

/** For people: "λ 0.2 topJ 1", "max_rank 8 topJ 2". */
export function settingText(setting: Omit<Setting, 'capacities'>, ranks: Ranks): string {
  return routingText(fieldsOf(setting, ranks));
}
