/** Measures points of the surfaces of all domains, one text after another, and keeps each as soon as it is measured. */
import { Routing } from '@moefleet/proto';
import type { EvaluationPoint, Evaluator } from './evaluator';
import { type MeasuredSurface, pointAt, withPoint } from './measured-surface';
import { pairedLoss } from './paired-loss';

export interface MeasureOptions {
  signal: AbortSignal;
  /** `fraction` of the point under way, all domains together */
  onProgress(point: EvaluationPoint, fraction: number): void;
  /** after each point of a domain, and how long it took */
  onPoint(surface: MeasuredSurface, seconds: number): Promise<void>;
}

export class SurfaceMeasurement {
  measuredPoints = 0;

  /** `surfaces` in the order of the subject's domains. */
  constructor(private readonly evaluator: Evaluator, readonly surfaces: MeasuredSurface[], private readonly options: MeasureOptions) {}

  /** The point at λ 0 comes first wherever another one is asked for: a loss is the difference to it. */
  async measure(point: EvaluationPoint): Promise<void> {
    const { surfaces, options } = this;
    for (const domain of surfaces.keys()) {
      const progress = (fraction: number) => options.onProgress(point, (domain + fraction) / surfaces.length);
      const baseline = { ...point, routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, topJ: 0 };
      if (!pointAt(surfaces[domain]!, baseline)) await this.evaluate(baseline, domain, progress);
      if (!pointAt(surfaces[domain]!, point)) await this.evaluate(point, domain, progress);
    }
  }

  private async evaluate(point: EvaluationPoint, domain: number, onProgress: (fraction: number) => void): Promise<void> {
    const evaluation = await this.evaluator.evaluate(point, domain, onProgress, this.options.signal);
    let surface = this.surfaces[domain]!;
    // The cross-entropy at λ 0 is the same at every capacity.
    if (point.lambda === 0) surface = { ...surface, baselineCrossEntropy: evaluation.crossEntropy, baselineWindows: [...evaluation.windows] };
    const loss = point.lambda === 0 ? { mean: 0, stderr: 0 } : pairedLoss(evaluation.windows, surface.baselineWindows);
    surface = withPoint({ ...surface, measuredMs: surface.measuredMs + BigInt(Math.round(evaluation.evalNs / 1e6)) }, {
      lambda: point.lambda, topJ: point.topJ, routing: point.routing, capacities: [...point.capacities],
      crossEntropyLoss: loss.mean, crossEntropyLossStderr: loss.stderr,
      missRate: evaluation.missRate, swapRate: evaluation.swapRate, massLost: evaluation.massLost, layerMissRates: evaluation.layerMissRates,
    });
    this.surfaces[domain] = surface;
    this.measuredPoints += 1;
    await this.options.onPoint(surface, evaluation.evalNs / 1e9);
  }
}
