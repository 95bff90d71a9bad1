/** What is chosen for a device, and what of its model the choice depends on. Pure values; nothing here does I/O. */
import { Routing } from '@moefleet/proto';

export interface Setting {
  readonly routing: Routing;
  /** how far it bends, in [0,1]: see routing-strength.ts; with 0 routing and topJ mean nothing */
  readonly lambda: number;
  /** in [0, topK] */
  readonly topJ: number;
  /** experts per MoE layer, in layer order */
  readonly capacities: readonly number[];
}

export interface ModelShape {
  readonly experts: number;
  readonly topK: number;
  /** bytes of one expert, per MoE layer in layer order */
  readonly expertBytes: readonly number[];
}

export const MIB = 1024 * 1024;

/** Experts that may be resident, as a share of all: 1 where everything fits. */
export function residentShare(shape: ModelShape, capacities: readonly number[]): number {
  return capacities.reduce((sum, capacity) => sum + Math.min(capacity, shape.experts), 0) / (capacities.length * shape.experts);
}

/** Every expert stays in memory once read: there is nothing for λ to save. */
export function holdsEverything({ experts }: ModelShape, capacities: readonly number[]): boolean {
  return capacities.every((capacity) => capacity >= experts);
}

export function bytesOfCapacities(shape: ModelShape, capacities: readonly number[]): number {
  return capacities.reduce((sum, capacity, layer) => sum + capacity * (shape.expertBytes[layer] ?? 0), 0);
}

/** Bytes that one decoded token has to have read, given each layer's misses per selected slot. */
export function missBytesPerToken(shape: ModelShape, layerMissRates: readonly number[]): number {
  return layerMissRates.reduce((sum, rate, layer) => sum + rate * shape.topK * (shape.expertBytes[layer] ?? 0), 0);
}

export function sameCapacities(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((capacity, i) => capacity === b[i]);
}

export function sameSetting(a: Setting, b: Setting): boolean {
  return a.lambda === b.lambda && (a.lambda === 0 || (a.routing === b.routing && a.topJ === b.topJ)) && sameCapacities(a.capacities, b.capacities);
}
