/**
 * Which point of the surface to measure next. For each topJ the walk goes up the grid of λ and ends early where going
 * on cannot change a proposal. Misses fall and the loss rises with λ, so once the loss is beyond the budget by two
 * standard errors, every larger λ is too; and where a step in λ no longer saves one miss in a hundred, larger ones
 * only cost. At one λ a larger topJ misses more and loses less, so its walk begins above the largest λ that a smaller
 * topJ can afford. A pure function of what is measured: it goes on after a break, and where the budget was raised, from
 * where the smaller one ended.
 */
import type { SurfacePoint } from '@moefleet/proto';
import { baselineOf, pointOf } from './quality-surface';

/** Most of the gain is had by λ 0.1 to 0.3, so the grid is dense there. */
export const LAMBDA_GRID = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1] as const;
export const TOP_J_GRID = [1, 2, 3] as const;

const BOUND_STDERRS = 1;
const CLEAR_STDERRS = 2;
const LEAST_GAIN = 0.01;

export interface GridLimits {
  capacities: readonly number[];
  experts: number;
  topK: number;
  budgetNats: number;
}

/** `points` are those measured at `limits.capacities`. null: the walk is at its end. */
export function nextPoint(points: readonly SurfacePoint[], limits: GridLimits): { lambda: number; topJ: number } | null {
  const baseline = baselineOf(points);
  if (!baseline) return { lambda: 0, topJ: 0 };
  if (holdsEverything(limits)) return null;
  let afforded = 0;
  for (const topJ of TOP_J_GRID.filter((topJ) => topJ <= limits.topK)) {
    let before: SurfacePoint = baseline;
    for (const lambda of LAMBDA_GRID.filter((lambda) => lambda > afforded)) {
      const point = pointOf(points, lambda, topJ);
      if (!point) return { lambda, topJ };
      if (clearlyBeyond(point, limits.budgetNats)) break;
      if (savesNothing(before, point)) {
        // There is no more to be had, and what there is can be afforded.
        if (withinBudget(point, limits.budgetNats)) return null;
        break;
      }
      before = point;
    }
    afforded = Math.max(afforded, ...points.filter((point) => point.topJ === topJ && withinBudget(point, limits.budgetNats)).map((point) => point.lambda));
  }
  return null;
}

/** Every expert stays in memory once read: there is nothing for λ to save. */
export function holdsEverything({ capacities, experts }: Pick<GridLimits, 'capacities' | 'experts'>): boolean {
  return capacities.every((capacity) => capacity >= experts);
}

/** One standard error above the mean: a loss that the budget still covers five times in six. */
export function lossBound(point: SurfacePoint): number {
  return point.lambda === 0 ? 0 : point.crossEntropyLoss + BOUND_STDERRS * point.crossEntropyLossStderr;
}

export function withinBudget(point: SurfacePoint, budgetNats: number): boolean {
  return lossBound(point) <= budgetNats;
}

function clearlyBeyond(point: SurfacePoint, budgetNats: number): boolean {
  return point.crossEntropyLoss - CLEAR_STDERRS * point.crossEntropyLossStderr > budgetNats;
}

function savesNothing(before: SurfacePoint, point: SurfacePoint): boolean {
  return point.missRate > before.missRate * (1 - LEAST_GAIN);
}
