/** A measured surface as it is kept: of one model on one text, a set of points, at most one for each (capacities, routing, topJ, λ). */
import type { QualitySurface as MeasuredSurface, Routing, SurfacePoint } from '@moefleet/proto';
import { WINDOW_TOKENS } from './config';
import type { Domain, EvaluationSubject } from './evaluator';
import { type MeasuredDomain, sameSetting, type Setting } from './model';

export type { MeasuredSurface };

export function emptySurface({ modelHash, engineVersion }: Pick<EvaluationSubject, 'modelHash' | 'engineVersion'>, domain: Domain, tokens: number): MeasuredSurface {
  return {
    modelHash, engineVersion, textHash: domain.textHash, domain: domain.name, tokens, context: WINDOW_TOKENS, baselineCrossEntropy: 0, points: [], measuredMs: 0n, baselineWindows: [],
  };
}

/** Why a stored surface is not to be gone on from; null where it is. What the store holds is not trusted. */
export function whyUnusable(stored: MeasuredSurface, subject: EvaluationSubject, domain: Domain, tokens: number): string | null {
  if (stored.modelHash !== subject.modelHash) return `it is of model ${stored.modelHash.slice(0, 12)}, not ${subject.modelHash.slice(0, 12)}`;
  if (stored.textHash !== domain.textHash) return `it is of text ${stored.textHash.slice(0, 12)}, not ${domain.textHash.slice(0, 12)}`;
  if (stored.tokens !== tokens || stored.context !== WINDOW_TOKENS) return `it was measured on ${stored.tokens} tokens in windows of ${stored.context}`;
  if (stored.engineVersion !== subject.engineVersion) return `it was measured by engine "${stored.engineVersion}"`;
  if (stored.baselineWindows.length !== (stored.points.length > 0 ? tokens / WINDOW_TOKENS : stored.baselineWindows.length)) return 'the windows at λ 0 are not with it';
  const numbers = stored.points.flatMap((point) => [point.lambda, point.crossEntropyLoss, point.crossEntropyLossStderr, point.missRate, point.massLost, ...point.layerMissRates]);
  if (![stored.baselineCrossEntropy, ...stored.baselineWindows, ...numbers].every(Number.isFinite)) return 'it holds figures that are no numbers';
  return null;
}

export function pointAt(surface: MeasuredSurface, setting: Setting): SurfacePoint | undefined {
  return surface.points.find((point) => sameSetting(point, setting));
}

/** The surface with `point` in it, in place of an older one. */
export function withPoint(surface: MeasuredSurface, point: SurfacePoint): MeasuredSurface {
  const older = pointAt(surface, point);
  return { ...surface, points: [...surface.points.filter((one) => one !== older), point] };
}

/** Of these routings alone: what was measured of another is kept, and not chosen from. */
export function toDomain({ domain, points }: MeasuredSurface, routings: readonly Routing[]): MeasuredDomain {
  return {
    domain,
    points: points.filter(({ lambda, routing }) => lambda === 0 || routings.includes(routing)).map((point) => ({
      routing: point.routing, lambda: point.lambda, topJ: point.topJ, capacities: point.capacities, loss: point.crossEntropyLoss, stderr: point.crossEntropyLossStderr,
      missRate: point.missRate, layerMissRates: point.layerMissRates.length === point.capacities.length ? point.layerMissRates : undefined, massLost: point.massLost,
    })),
  };
}
