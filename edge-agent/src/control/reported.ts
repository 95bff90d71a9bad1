/** What the agent says it runs, from what is in force and how the last change went. */
import { Eviction, Reported, Routing, type SpecState } from '@moefleet/proto';
import type { InForce } from './desired-applier';
import { EVICTION_OF, ROUTING_OF } from './effective-routing';
import { specHash } from './spec-store';

export interface ReportInput {
  state: SpecState;
  inForce: InForce | null;
  /** the generation `state` speaks of */
  generation: bigint;
  /** of the spec of that generation */
  hash: Buffer;
  reason: string;
}

export function reportedOf({ state, inForce, generation, hash, reason }: ReportInput): Reported {
  const record = inForce?.record;
  const received = record !== undefined && record.generation > 0n;
  return Reported.fromPartial({
    state, generation, hash, reason,
    appliedGeneration: received ? record.generation : 0n,
    appliedHash: received ? specHash(record.bytes) : Buffer.alloc(0),
    effective: inForce ? effectiveOf(inForce) : undefined,
    adjustments: inForce?.effective.adjustments ?? [],
  });
}

/** The values in force in the words of the stream. */
export function effectiveOf({ effective }: InForce): NonNullable<Reported['effective']> {
  const { routing, cacheBytes, traceRatio, routerSampling } = effective;
  return {
    lambda: routing.lambda, topJ: routing.topJ, routing: nameOf(ROUTING_OF, routing.routing, Routing.ROUTING_UNSPECIFIED), capacities: [...routing.capacities],
    cacheBytes: BigInt(cacheBytes), traceRatio, routerSampling: routerSampling !== null,
    lambdas: [...routing.lambdas ?? []], topJs: [...routing.topJs ?? []], maxRank: routing.maxRank ?? 0, massThreshold: routing.massThreshold ?? 0,
    firstBiasedLayer: routing.firstBiasedLayer, biasPrefill: routing.biasPrefill,
    eviction: nameOf(EVICTION_OF, routing.eviction, Eviction.EVICTION_UNSPECIFIED), evictionHalfLifeTokens: routing.evictionHalfLifeTokens,
  };
}

/** The stream's name of an engine's value; `unspecified` has one too, and is never it. */
function nameOf<E extends number>(values: Readonly<Partial<Record<E, string>>>, value: string, unspecified: E): E {
  const found = Object.entries(values).find(([key, text]) => text === value && Number(key) !== unspecified);
  return found ? Number(found[0]) as E : unspecified;
}
