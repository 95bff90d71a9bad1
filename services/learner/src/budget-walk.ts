/**
 * Which point of the surface to measure next at given capacities: along each line, a routing with a topJ, the λ where the
 * budget runs out is bracketed and the bracket narrowed, as everywhere else a point would change no proposal. The loss rises
 * with λ and the misses fall, so the best setting of a line lies at the end of what is within the budget. A line ends early
 * where even the point beyond its budget misses more than another line's within: it cannot win. A pure function of what is
 * measured: it goes on after a break, and where a budget was raised, from where the smaller one ended.
 */
import { Routing } from '@moefleet/proto';
import { budgetUse, holdsEverything, type ModelShape, type QualityBudget, type QualityPrediction, type QualitySurface, sameCapacities, type Setting, strengths, within } from './model';

export interface WalkLimits {
  capacities: readonly number[];
  shape: ModelShape;
  routings: readonly Routing[];
  /** the loosest of those in force: a tighter one lies inside of what is measured then */
  budget: QualityBudget;
}

/** In the order in which they most often win. */
const TOP_J_ORDER = [1, 2, 0, 3];
/** Most of the gain is had by λ 0.1 to 0.3. */
const FIRST_LAMBDA: Readonly<Record<number, number>> = { 0: 0.1 };
const USUAL_FIRST_LAMBDA = 0.2;
/** The most a line can save, where that is likely not to be enough: then nothing else of it has to be known. */
const STRONGEST = 1;
/** A bracket that is narrower, in λ or in misses, changes nothing that shows. */
const NARROW_LAMBDA = 0.02;
const NARROW_MISSES = 0.03;
/** Going up in λ beyond a step that saved less. */
const LEAST_SAVING = 0.01;
const MOST_POINTS_PER_LINE = 8;

interface Line { readonly routing: Routing; readonly topJ: number }
interface Knot { lambda: number; quality: QualityPrediction; fits: boolean }

/** `lambdas(line, capacities)`: what is measured there in every domain, ascending. null: the walk is at its end. */
export function nextPoint(surface: QualitySurface, lambdas: (line: Line, capacities: readonly number[]) => readonly number[], limits: WalkLimits): Omit<Setting, 'capacities'> | null {
  const { capacities, shape } = limits;
  const own = { routing: Routing.ROUTING_CACHE_PRIOR, topJ: 0 };
  if (lambdas(own, capacities)[0] !== 0) return { ...own, lambda: 0 };
  if (holdsEverything(shape, capacities)) return null;
  let fewest = knot(surface, limits, own, 0).quality.missRate;
  for (const line of linesOf(limits)) {
    const able = strengths(line.routing, shape);
    const knots = [0, ...lambdas(line, capacities).filter((lambda) => lambda > 0)].map((lambda) => knot(surface, limits, line, lambda));
    const lambda = knots.length === 1 ? firstLambda(line, shape.topK) : nextLambda(knots, able, fewest, limits.budget);
    if (lambda !== null) return { ...line, lambda };
    fewest = Math.min(fewest, ...knots.filter(({ fits }) => fits).map(({ quality }) => quality.missRate));
  }
  return null;
}

/** One that protects none cannot drop what misses: a token might use no expert at all. */
function linesOf({ routings, shape }: WalkLimits): Line[] {
  const topJs = TOP_J_ORDER.filter((topJ) => topJ <= shape.topK);
  return routings.filter((routing) => strengths(routing, shape).length > 0)
    .flatMap((routing) => topJs.filter((topJ) => topJ > 0 || routing !== Routing.ROUTING_PRUNED).map((topJ) => ({ routing, topJ })));
}

function firstLambda({ routing, topJ }: Line, topK: number): number {
  const sparing = routing !== Routing.ROUTING_CACHE_PRIOR || (topJ > 0 && topJ === topK - 1);
  return sparing ? STRONGEST : FIRST_LAMBDA[topJ] ?? USUAL_FIRST_LAMBDA;
}

/** One of `able`. */
function nextLambda(knots: readonly Knot[], able: readonly number[], fewest: number, budget: QualityBudget): number | null {
  if (knots.length > MOST_POINTS_PER_LINE) return null;
  const inside = knots.filter(({ fits }) => fits).at(-1)!;
  const outside = knots.find(({ lambda }) => lambda > inside.lambda);
  if (!outside) return beyond(knots, inside, able);
  if (outside.quality.missRate >= fewest && inside.quality.missRate > fewest) return null;
  if (inside.quality.missRate - outside.quality.missRate <= NARROW_MISSES * inside.quality.missRate) return null;
  const width = outside.lambda - inside.lambda;
  if (width <= NARROW_LAMBDA + 1e-9) return null;
  // Where a straight line crosses the budget; the curve is convex, so the crossing lies further on, if anywhere.
  const [used, over] = [budgetUse(inside.quality, budget), budgetUse(outside.quality, budget)];
  const share = Math.min(Math.max((1 - used) / Math.max(over - used, 1e-9), 0.3), 0.7);
  const lambda = nearest(able, inside.lambda + share * width);
  return lambda > inside.lambda + 1e-9 && lambda < outside.lambda - 1e-9 ? lambda : null;
}

/** Nothing measured is beyond the budget yet. */
function beyond(knots: readonly Knot[], inside: Knot, able: readonly number[]): number | null {
  const before = knots.at(-2)!;
  if (inside.lambda >= 1 || inside.quality.missRate > before.quality.missRate * (1 - LEAST_SAVING)) return null;
  return nearest(able, Math.max(inside.lambda * 1.5, inside.lambda + 0.05));
}

function nearest(able: readonly number[], lambda: number): number {
  return able.reduce((best, one) => (Math.abs(one - lambda) < Math.abs(best - lambda) - 1e-12 ? one : best));
}

function knot(surface: QualitySurface, { capacities, budget }: WalkLimits, line: Line, lambda: number): Knot {
  const quality = surface.predict({ ...line, lambda, capacities });
  if (!quality) throw new Error(`λ ${lambda} topJ ${line.topJ} of routing ${line.routing} is measured at ${capacities.join()} and not on the surface`);
  return { lambda, quality, fits: lambda === 0 || within(quality, budget) };
}

/** For `nextPoint`. */
export function measuredLambdas(domains: readonly { points: readonly Setting[] }[]) {
  return ({ routing, topJ }: Line, capacities: readonly number[]): number[] => {
    const sets = domains.map(({ points }) => new Set(points
      .filter((point) => (point.lambda === 0 || (point.routing === routing && point.topJ === topJ)) && sameCapacities(point.capacities, capacities)).map(({ lambda }) => lambda)));
    return [...sets[0] ?? []].filter((lambda) => sets.every((set) => set.has(lambda))).sort((a, b) => a - b);
  };
}

