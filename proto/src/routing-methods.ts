/** The ways of routing by the names that people and files use. */
import { Routing } from './gen/moefleet/v1/device';

export const ROUTINGS = {
  original: Routing.ROUTING_ORIGINAL, cache_prior: Routing.ROUTING_CACHE_PRIOR, max_rank: Routing.ROUTING_MAX_RANK,
  cumulative_threshold: Routing.ROUTING_CUMULATIVE_THRESHOLD, pruned: Routing.ROUTING_PRUNED,
} as const satisfies Record<string, Routing>;

export type RoutingMethod = keyof typeof ROUTINGS;

export const ROUTING_METHODS = Object.keys(ROUTINGS) as RoutingMethod[];

/** null for none, and for one that this release does not know. */
export function routingMethod(routing: Routing): RoutingMethod | null {
  return ROUTING_METHODS.find((name) => ROUTINGS[name] === routing) ?? null;
}
