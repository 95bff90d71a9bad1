/**
 * How a device's bytes are split over its layers: each byte goes where it saves the most misses. On the lower convex hull
 * of each layer's miss curve the greedy choice by marginal hits per byte is optimal for the sum (water-filling; Fox 1966),
 * and a curve's dents, which no prefix of bytes can use, are bridged.
 */
import type { ModelShape } from './setting';

/** Misses per selected slot at each capacity; ascending, from topK up to all experts. */
export type MissCurve = readonly { readonly capacity: number; readonly missRate: number }[];

interface Step { layer: number; experts: number; bytes: number; gain: number }

/** Capacities in layer order, each in [topK, experts]; null below one token cycle or where a layer has no curve. */
export function splitBytes(shape: ModelShape, curves: readonly MissCurve[], bytes: number): number[] | null {
  const capacities = shape.expertBytes.map(() => shape.topK);
  let left = bytes - shape.expertBytes.reduce((sum, one) => sum + shape.topK * one, 0);
  if (left < 0 || curves.length !== capacities.length || curves.some((curve) => curve.length === 0)) return null;
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
  for (const point of cut(curve, shape)) {
    while (hull.length >= 2 && slope(hull.at(-2)!, hull.at(-1)!) >= slope(hull.at(-1)!, point)) hull.pop();
    hull.push(point);
  }
  return hull.slice(1).map((point, i) => {
    const from = hull[i]!;
    const experts = point.capacity - from.capacity;
    return { layer, experts, bytes: experts * shape.expertBytes[layer]!, gain: Math.max(from.missRate - point.missRate, 0) };
  });
}

/** The curve within [topK, experts], with both ends: its first value reaches down to topK, and nothing misses where all fit. */
function cut(curve: MissCurve, { topK, experts }: ModelShape): MissCurve {
  const inside = curve.filter(({ capacity }) => capacity > topK && capacity < experts);
  const first = curve.filter(({ capacity }) => capacity <= topK).at(-1) ?? extended(curve, topK);
  return [{ capacity: topK, missRate: first.missRate }, ...inside, { capacity: experts, missRate: 0 }];
}

/** Below what was measured the curve goes on as steeply as it begins. */
function extended(curve: MissCurve, topK: number): { missRate: number } {
  const [a, b] = [curve[0]!, curve[1]];
  const steep = b ? (a.missRate - b.missRate) / (b.capacity - a.capacity) : 0;
  return { missRate: Math.min(1, a.missRate + steep * (a.capacity - topK)) };
}

function slope(a: { capacity: number; missRate: number }, b: { capacity: number; missRate: number }): number {
  return (b.missRate - a.missRate) / (b.capacity - a.capacity);
}
