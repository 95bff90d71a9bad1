/**
 * Which point of the surface to measure next at given capacities: along each topJ the λ where the budget runs out is
 * bracketed and the bracket narrowed, as everywhere else a point would change no proposal. The loss rises with λ and
 * the misses fall, so the best setting of a topJ lies at the end of what is within the budget. A topJ ends early where
 * even the point beyond its budget misses more than another topJ's within: it cannot win. A pure function of what is
 * measured: it goes on after a break, and where a budget was raised, from where the smaller one ended.
 */
import { Routing } from '@moefleet/proto';
import { budgetUse, holdsEverything, type ModelShape, type QualityBudget, type QualityPrediction, type QualitySurface, sameCapacities, within } from './model';

export interface WalkLimits {
  capacities: readonly number[];
  shape: ModelShape;
  /** the loosest of those in force: a tighter one lies inside of what is measured then */
  budget: QualityBudget;
}

/** In the order in which they most often win. */
const TOP_J_ORDER = [1, 2, 0, 3];
/** Most of the gain is had by λ 0.1 to 0.3. */
const FIRST_LAMBDA: Readonly<Record<number, number>> = { 0: 0.1 };
const USUAL_FIRST_LAMBDA = 0.2;
/** Where all but one are protected λ costs little and saves little: if the most it can save is not enough, nothing of it has to be known. */
const ALL_BUT_ONE_FIRST_LAMBDA = 1;
/** A bracket that is narrower, in λ or in misses, changes nothing that shows. */
const NARROW_LAMBDA = 0.02;
const NARROW_MISSES = 0.03;
/** Going up in λ beyond a step that saved less. */
const LEAST_SAVING = 0.01;
const MOST_POINTS_PER_LINE = 8;

interface Knot { lambda: number; quality: QualityPrediction; fits: boolean }

/** `lambdas(topJ, capacities)`: what is measured there in every domain, ascending. null: the walk is at its end. */
export function nextPoint(surface: QualitySurface, lambdas: (topJ: number, capacities: readonly number[]) => readonly number[], limits: WalkLimits): { lambda: number; topJ: number } | null {
  const { capacities, shape } = limits;
  if (lambdas(0, capacities)[0] !== 0) return { lambda: 0, topJ: 0 };
  if (holdsEverything(shape, capacities)) return null;
  let fewest = knot(surface, limits, 0, 0).quality.missRate;
  for (const topJ of TOP_J_ORDER.filter((one) => one <= shape.topK)) {
    const knots = [0, ...lambdas(topJ, capacities).filter((lambda) => lambda > 0)].map((lambda) => knot(surface, limits, lambda, topJ));
    const lambda = knots.length === 1 ? firstLambda(topJ, shape.topK) : nextLambda(knots, fewest, limits.budget);
    if (lambda !== null) return { lambda, topJ };
    fewest = Math.min(fewest, ...knots.filter(({ fits }) => fits).map(({ quality }) => quality.missRate));
  }
  return null;
}

function firstLambda(topJ: number, topK: number): number {
  return topJ > 0 && topJ === topK - 1 ? ALL_BUT_ONE_FIRST_LAMBDA : FIRST_LAMBDA[topJ] ?? USUAL_FIRST_LAMBDA;
}

function nextLambda(knots: readonly Knot[], fewest: number, budget: QualityBudget): number | null {
  if (knots.length > MOST_POINTS_PER_LINE) return null;
  const inside = knots.filter(({ fits }) => fits).at(-1)!;
  const outside = knots.find(({ lambda }) => lambda > inside.lambda);
  if (!outside) return beyond(knots, inside);
  if (outside.quality.missRate >= fewest && inside.quality.missRate > fewest) return null;
  if (inside.quality.missRate - outside.quality.missRate <= NARROW_MISSES * inside.quality.missRate) return null;
  const width = outside.lambda - inside.lambda;
  if (width <= NARROW_LAMBDA + 1e-9) return null;
  // Where a straight line crosses the budget; the curve is convex, so the crossing lies further on, if anywhere.
  const [used, over] = [budgetUse(inside.quality, budget), budgetUse(outside.quality, budget)];
  const share = Math.min(Math.max((1 - used) / Math.max(over - used, 1e-9), 0.3), 0.7);
  const lambda = Math.round((inside.lambda + share * width) * 100) / 100;
  return lambda > inside.lambda + 1e-9 && lambda < outside.lambda - 1e-9 ? lambda : null;
}

/** Nothing measured is beyond the budget yet. */
function beyond(knots: readonly Knot[], inside: Knot): number | null {
  const before = knots.at(-2)!;
  if (inside.lambda >= 1 || inside.quality.missRate > before.quality.missRate * (1 - LEAST_SAVING)) return null;
  return Math.min(1, Math.round(Math.max(inside.lambda * 1.5, inside.lambda + 0.05) * 100) / 100);
}

function knot(surface: QualitySurface, { capacities, budget }: WalkLimits, lambda: number, topJ: number): Knot {
  const quality = surface.predict({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities });
  if (!quality) throw new Error(`λ ${lambda} topJ ${topJ} is measured at ${capacities.join()} and not on the surface`);
  return { lambda, quality, fits: lambda === 0 || within(quality, budget) };
}

/** For `nextPoint`. */
export function measuredLambdas(domains: readonly { points: readonly { lambda: number; topJ: number; capacities: readonly number[] }[] }[]) {
  return (topJ: number, capacities: readonly number[]): number[] => {
    const sets = domains.map(({ points }) => new Set(points
      .filter((point) => (point.lambda === 0 || point.topJ === topJ) && sameCapacities(point.capacities, capacities)).map(({ lambda }) => lambda)));
    return [...sets[0] ?? []].filter((lambda) => sets.every((set) => set.has(lambda))).sort((a, b) => a - b);
  };
}

