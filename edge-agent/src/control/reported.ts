/** What the agent says it runs, from what is in force and how the last change went. */
import { Reported, Routing, type SpecState } from '@moefleet/proto';
import type { RoutingSpec } from '../engine';
import type { InForce } from './desired-applier';
import { specHash } from './spec-store';

/** The stream has names for the two that a desired spec can ask for. */
const ROUTING: Partial<Record<RoutingSpec['routing'], Routing>> = { original: Routing.ROUTING_ORIGINAL, cache_prior: Routing.ROUTING_CACHE_PRIOR };

export interface ReportInput {
  state: SpecState;
  inForce: InForce | null;
  /** the generation `state` speaks of */
  generation: bigint;
  reason: string;
}

export function reportedOf({ state, inForce, generation, reason }: ReportInput): Reported {
  const record = inForce?.record;
  const received = record !== undefined && record.generation > 0n;
  return Reported.fromPartial({
    state, generation, reason,
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
    lambda: routing.lambda, topJ: routing.topJ, routing: ROUTING[routing.routing] ?? Routing.ROUTING_UNSPECIFIED, capacities: [...routing.capacities],
    cacheBytes: BigInt(cacheBytes), traceRatio, routerSampling: routerSampling !== null,
  };
}
