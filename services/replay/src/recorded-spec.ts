/** What was in force when windows were recorded, in the engine's words. */
import type { Eviction as EngineEviction, WhatIf } from '@moefleet/edge-agent/engine';
import { type EffectiveSpec, Eviction, Routing, type RoutingMethod, routingMethod, ROUTINGS } from '@moefleet/proto';

const EVICTION: Readonly<Record<number, EngineEviction>> = {
  [Eviction.EVICTION_LRU]: 'lru', [Eviction.EVICTION_LFU]: 'lfu', [Eviction.EVICTION_LFRU]: 'lfru', [Eviction.EVICTION_ADAPTIVE]: 'adaptive',
};

/** null where it names something that this release does not know. */
export function recordedWhatIf(spec: EffectiveSpec): WhatIf | null {
  const routing = routingMethod(spec.routing);
  const eviction = EVICTION[spec.eviction];
  if (!routing || !eviction) return null;
  return {
    routing, eviction, evictionHalfLifeTokens: spec.evictionHalfLifeTokens, generation: 0, lambda: spec.lambda, topJ: spec.topJ, capacities: spec.capacities,
    lambdas: spec.lambdas.length > 0 ? spec.lambdas : null, topJs: spec.topJs.length > 0 ? spec.topJs : null,
    ...(spec.maxRank > 0 ? { maxRank: spec.maxRank } : {}), massThreshold: spec.massThreshold, firstBiasedLayer: spec.firstBiasedLayer,
  };
}

/** The inverse, of what a local evaluation records. `spec` has every value that its routing reads. */
export function effectiveSpecOf(spec: WhatIf): EffectiveSpec {
  const key = (names: Readonly<Record<number, string>>, name: string) => Number(Object.keys(names).find((each) => names[Number(each)] === name) ?? 0);
  return {
    routing: ROUTINGS[spec.routing as RoutingMethod] ?? Routing.ROUTING_UNSPECIFIED, eviction: key(EVICTION, spec.eviction ?? 'adaptive'), evictionHalfLifeTokens: spec.evictionHalfLifeTokens ?? 0,
    lambda: spec.lambda, topJ: spec.topJ, lambdas: spec.lambdas ?? [], topJs: spec.topJs ?? [], maxRank: spec.maxRank ?? 0, massThreshold: spec.massThreshold ?? 0,
    firstBiasedLayer: spec.firstBiasedLayer ?? 0, biasPrefill: spec.biasPrefill ?? false, capacities: spec.capacities, cacheBytes: 0n, traceRatio: 0, routerSampling: true,
  };
}
