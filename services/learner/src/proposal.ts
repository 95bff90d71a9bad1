/**
 * The decision: of the measured points at the device's capacity (the largest its own limit allows, unless an operator
 * has pinned another), the one with the fewest misses whose loss stays inside the budget even at its upper bound.
 * Nothing is interpolated and nothing is assumed for a capacity that was not measured.
 */
import type { Device, Proposal, QualitySurface, SurfacePoint } from '@moefleet/proto';
import { ValueSource_Layer } from '@moefleet/proto';
import { deviceCapacities } from './device-capacities';
import { holdsEverything, lossBound, withinBudget } from './grid-walk';
import { baselineOf, pointOf, pointsAt, sameCapacities } from './quality-surface';

/** A new point replaces the current one where it saves a twentieth of its misses. */
const LEAST_GAIN = 0.05;
/** What the agent takes where topJ is not set; for λ 0, where it means nothing. */
const DEFAULT_TOP_J = 2;

export interface Budget { nats: number; }

/** `surface` null: nothing has been measured for this model and text. */
export function proposeConfig(surface: QualitySurface | null, device: Device, budget: Budget, nowMs: number): Proposal {
  const model = device.info?.model;
  const limits = device.info?.limits;
  const none = (reason: string): Proposal => ({
    deviceId: device.id, modelHash: model?.hash ?? '', lambda: 0, topJ: 0, capacities: [], predictedMissRate: 0,
    predictedCrossEntropyLoss: 0, baselineMissRate: 0, reason, proposed: false, timeMs: BigInt(nowMs), textHash: surface?.textHash ?? '',
  });

  if (!model?.hash) return none('no model is loaded on the device');
  if (!surface) return none('the quality of its model has not been measured');
  if (surface.modelHash !== model.hash) return none(`the device runs model ${short(model.hash)}, the learner measures ${short(surface.modelHash)}`);
  if (!limits || limits.maxCapacities.length === 0) return none('the device has not told what its cache limit holds');
  const { capacities, pinned } = deviceCapacities(device);
  if (capacities.some((capacity) => capacity < model.topK)) {
    return none(`the device's cache limit holds ${Math.min(...capacities)} experts of a layer, a token needs ${model.topK}`);
  }
  const points = pointsAt(surface, capacities);
  const baseline = baselineOf(points);
  if (!baseline) return none(`the model has not been measured at capacity ${capacityText(capacities)} yet`);

  const best = fewestMisses(points, limits.maxLambda, budget);
  const current = currentPoint(device, points, capacities);
  const kept = current && allowed(current, limits.maxLambda, budget) && best.missRate > current.missRate * (1 - LEAST_GAIN) ? current : null;
  const chosen = kept ?? best;
  return {
    ...none(''),
    lambda: chosen.lambda,
    topJ: chosen.lambda === 0 ? Math.min(DEFAULT_TOP_J, model.topK) : chosen.topJ,
    capacities: [...capacities],
    predictedMissRate: chosen.missRate,
    predictedCrossEntropyLoss: chosen.crossEntropyLoss,
    baselineMissRate: baseline.missRate,
    reason: holdsEverything({ capacities, experts: model.experts })
      ? `every expert fits into capacity ${capacityText(capacities)}, λ has nothing to save`
      : `${pointText(chosen, baseline, `capacity ${capacityText(capacities)} (${pinned ? 'pinned by an operator' : 'the device\'s limit'})`, budget)}; ${boundText(points, chosen, limits.maxLambda, budget)}` +
        (kept && kept !== best ? `; kept, as ${nameOf(best)} would save less than a twentieth of its misses` : ''),
    proposed: true,
  };
}

function allowed(point: SurfacePoint, maxLambda: number, budget: Budget): boolean {
  return point.lambda <= maxLambda && withinBudget(point, budget.nats);
}

/** λ 0 is always allowed, so there is one. Equal misses: the smaller loss. */
function fewestMisses(points: readonly SurfacePoint[], maxLambda: number, budget: Budget): SurfacePoint {
  return points
    .filter((point) => allowed(point, maxLambda, budget))
    .reduce((best, point) => (point.missRate < best.missRate || (point.missRate === best.missRate && lossBound(point) < lossBound(best)) ? point : best));
}

/** What the learner had this device run so far, where it is on the surface; an operator's pin is not ours to keep. */
function currentPoint(device: Device, points: readonly SurfacePoint[], capacities: readonly number[]): SurfacePoint | undefined {
  const ours = device.sources.some((source) => source.field === 'lambda' && source.layer === ValueSource_Layer.LAYER_LEARNER);
  const { desired } = device;
  if (!ours || desired?.lambda === undefined) return undefined;
  if (desired.cache?.$case === 'capacities' && !sameCapacities(desired.cache.value.experts, capacities)) return undefined;
  return pointOf(points, desired.lambda, desired.topJ ?? DEFAULT_TOP_J);
}

function pointText(point: SurfacePoint, baseline: SurfacePoint, where: string, budget: Budget): string {
  const at = `${nameOf(point)} at ${where}`;
  if (point.lambda === 0) return `${at}: ${share(point.missRate)} of slots miss`;
  return `${at}: ${share(point.missRate)} of slots miss instead of ${share(baseline.missRate)}, for ${perplexity(point.crossEntropyLoss)} perplexity, ` +
    `at most ${perplexity(lossBound(point))} of a budget of ${perplexity(budget.nats)}`;
}

/** Why no point with fewer misses was taken. */
function boundText(points: readonly SurfacePoint[], chosen: SurfacePoint, maxLambda: number, budget: Budget): string {
  const better = points.filter((point) => point.missRate < chosen.missRate);
  const overLambda = better.filter((point) => point.lambda > maxLambda && withinBudget(point, budget.nats));
  if (overLambda.length > 0) return `bound by the device's own limit of λ ${maxLambda}`;
  const overBudget = better.filter((point) => !withinBudget(point, budget.nats)).sort((a, b) => lossBound(a) - lossBound(b));
  const next = overBudget[0];
  if (next) return `bound by the budget: ${nameOf(next)} would miss ${share(next.missRate)} but may cost ${perplexity(lossBound(next))}`;
  return 'no measured point misses less';
}

function nameOf(point: SurfacePoint): string {
  return point.lambda === 0 ? 'λ 0' : `λ ${point.lambda} topJ ${point.topJ}`;
}

function capacityText(capacities: readonly number[]): string {
  const [low, high] = [Math.min(...capacities), Math.max(...capacities)];
  return low === high ? String(low) : `${low} to ${high}`;
}

function share(rate: number): string {
  return `${(rate * 100).toFixed(1)}%`;
}

function perplexity(nats: number): string {
  const percent = Math.expm1(nats) * 100;
  return `${percent >= 0 ? '+' : ''}${percent.toFixed(2)}%`;
}

function short(hash: string): string {
  return hash.slice(0, 12);
}
