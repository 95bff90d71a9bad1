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

/** What decides which experts are chosen: of a spec, a proposal, a setting. Unset: the agent's default. */
export interface RoutingChosen {
  routing: Routing;
  lambda?: number | undefined;
  topJ?: number | undefined;
  /** one per layer, in place of `lambda` and `topJ`; empty or absent: the same for all */
  lambdas?: readonly number[];
  topJs?: readonly number[];
  maxRank?: number | undefined;
  massThreshold?: number | undefined;
}

/** For people: "λ 0.2 topJ 1", "max_rank 8 topJ 2", "pruned topJ 2"; "λ 0", where topJ means nothing. */
export function routingText({ routing, lambda = 0, topJ, lambdas = [], topJs = [], maxRank, massThreshold }: RoutingChosen): string {
  const byLambda = routing === Routing.ROUTING_CACHE_PRIOR || routing === Routing.ROUTING_UNSPECIFIED;
  if (byLambda && lambda === 0 && lambdas.length === 0) return 'λ 0';
  if (routing === Routing.ROUTING_ORIGINAL) return 'original';
  const method = byLambda ? `λ ${lambdas.length > 0 ? lambdas.join(',') : lambda}` : routingMethod(routing) ?? `routing ${routing}`;
  const strength = { [Routing.ROUTING_MAX_RANK]: maxRank, [Routing.ROUTING_CUMULATIVE_THRESHOLD]: massThreshold }[routing as number];
  const top = topJs.length > 0 ? topJs.join(',') : topJ;
  return [method, strength, top === undefined ? undefined : `topJ ${top}`].filter((part) => part !== undefined).join(' ');
}
