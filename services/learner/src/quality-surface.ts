/** The measured surface of one model on one text: a set of points, at most one for each (capacities, topJ, λ). */
import type { QualitySurface, SurfacePoint } from '@moefleet/proto';

export function emptySurface(key: { modelHash: string; textHash: string; tokens: number; context: number }): QualitySurface {
  return { ...key, baselineCrossEntropy: 0, points: [], measuredMs: 0n };
}

/** Points at exactly these capacities, which belong to one device class. */
export function pointsAt(surface: QualitySurface, capacities: readonly number[]): SurfacePoint[] {
  return surface.points.filter((point) => sameCapacities(point.capacities, capacities));
}

/** λ 0, where topJ means nothing. */
export function baselineOf(points: readonly SurfacePoint[]): SurfacePoint | undefined {
  return points.find((point) => point.lambda === 0);
}

export function pointOf(points: readonly SurfacePoint[], lambda: number, topJ: number): SurfacePoint | undefined {
  return points.find((point) => point.lambda === lambda && (lambda === 0 || point.topJ === topJ));
}

/** The surface with `point` in it, in place of an older one. */
export function withPoint(surface: QualitySurface, point: SurfacePoint): QualitySurface {
  const others = surface.points.filter((one) =>
    !(sameCapacities(one.capacities, point.capacities) && one.lambda === point.lambda && (point.lambda === 0 || one.topJ === point.topJ)));
  return { ...surface, points: [...others, point] };
}

export function sameCapacities(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((capacity, i) => capacity === b[i]);
}
