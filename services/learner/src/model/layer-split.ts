/**
 * How a device's bytes are split over its layers: each byte goes where it saves the most misses. On the lower convex hull
 * of each layer's miss curve the greedy choice by marginal hits per byte is optimal for the sum (water-filling; Fox 1966),
 * and a curve's dents, which no prefix of bytes can use, are bridged.
 */
import { bytesOfCapacities, type ModelShape } from './setting';

/** Misses per selected slot at each capacity; ascending. Below its first capacity nothing is known. */
export type MissCurve = readonly { readonly capacity: number; readonly missRate: number }[];

interface Step { layer: number; experts: number; bytes: number; gain: number }

/** Capacities in layer order, each from the beginning of its curve to all experts; null below that, or where a layer has no curve. */
export function splitBytes(shape: ModelShape, curves: readonly MissCurve[], bytes: number): number[] | null {
  if (curves.length !== shape.expertBytes.length || curves.some((curve) => curve.length === 0)) return null;
  const capacities = curves.map((curve) => Math.max(curve[0]!.capacity, shape.topK));
  let left = bytes - bytesOfCapacities(shape, capacities);
  if (left < 0) return null;
  const steps = curves.flatMap((curve, layer) => hullSteps(shape, curve, layer)).sort((a, b) => b.gain / b.bytes - a.gain / a.bytes);
  for (const step of steps) {
    const one = shape.expertBytes[step.layer]!;
    const taken = Math.min(step.experts, Math.floor(left / one));
    capacities[step.layer]! += taken;
    left -= taken * one;
  }
  return capacities;
}

/** The hull's segments, by falling gain per byte within the layer. */
function hullSteps(shape: ModelShape, curve: MissCurve, layer: number): Step[] {
  const hull: { capacity: number; missRate: number }[] = [];
  for (const point of whole(curve, shape)) {
    while (hull.length >= 2 && slope(hull.at(-2)!, hull.at(-1)!) >= slope(hull.at(-1)!, point)) hull.pop();
    hull.push(point);
  }
  return hull.slice(1).map((point, i) => {
    const from = hull[i]!;
    const experts = point.capacity - from.capacity;
    return { layer, experts, bytes: experts * shape.expertBytes[layer]!, gain: Math.max(from.missRate - point.missRate, 0) };
  });
}

/** The curve up to all experts, where nothing misses. */
function whole(curve: MissCurve, { topK, experts }: ModelShape): MissCurve {
  return [...curve.filter(({ capacity }) => capacity >= topK && capacity < experts), { capacity: experts, missRate: 0 }];
}

function slope(a: { capacity: number; missRate: number }, b: { capacity: number; missRate: number }): number {
  return (b.missRate - a.missRate) / (b.capacity - a.capacity);
}
