/** Measures what a surface lacks at given capacities, point by point, in the order of the grid walk. */
import { type QualitySurface, Routing } from '@moefleet/proto';
import type { Evaluation, Evaluator } from './evaluator';
import { nextPoint } from './grid-walk';
import { pairedLoss } from './paired-loss';
import { pointsAt, withPoint } from './quality-surface';

export interface MeasureOptions {
  capacities: readonly number[];
  budgetNats: number;
  signal: AbortSignal;
  /** `fraction` of the point under way */
  onProgress(point: { lambda: number; topJ: number }, fraction: number): void;
  /** after each point */
  onPoint(surface: QualitySurface): Promise<void>;
}

/** Scores λ 0 once: its cross-entropy is the same at every capacity, and each loss is paired with it. */
export class SurfaceMeasurement {
  private baseline: Evaluation | null = null;

  constructor(private readonly evaluator: Evaluator) {}

  async measure(surface: QualitySurface, options: MeasureOptions): Promise<QualitySurface> {
    const { capacities, budgetNats, signal } = options;
    const { experts, topK } = this.evaluator.subject;
    for (;;) {
      const point = nextPoint(pointsAt(surface, capacities), { capacities, experts, topK, budgetNats });
      if (!point) return surface;
      const score = (lambda: number, topJ: number) => this.evaluator.evaluate({ lambda, topJ, capacities }, (fraction) => options.onProgress(point, fraction), signal);
      const evaluation = await score(point.lambda, point.topJ);
      if (point.lambda === 0) this.baseline ??= evaluation;
      // A surface that was begun earlier holds the figures of λ 0, but not its windows.
      this.baseline ??= await score(0, 0);
      const loss = point.lambda === 0 ? { mean: 0, stderr: 0 } : pairedLoss(evaluation.windows, this.baseline.windows);
      surface = withPoint({
        ...surface,
        baselineCrossEntropy: this.baseline.crossEntropy,
        measuredMs: surface.measuredMs + BigInt(Math.round(evaluation.evalNs / 1e6)),
      }, {
        lambda: point.lambda, topJ: point.topJ, routing: Routing.ROUTING_CACHE_PRIOR, capacities: [...capacities],
        crossEntropyLoss: loss.mean, crossEntropyLossStderr: loss.stderr,
        missRate: evaluation.missRate, swapRate: evaluation.swapRate, massLost: evaluation.massLost,
      });
      await options.onPoint(surface);
    }
  }
}
