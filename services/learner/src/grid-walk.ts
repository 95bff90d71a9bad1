/**
 * Which point of the surface to measure next. For each topJ the walk goes up the grid of λ and ends early where going
 * on cannot change a proposal: misses fall and the loss rises with λ, so once the loss is beyond the budget by two
 * standard errors, every larger λ is too; and where a step in λ no longer saves one miss in a hundred, larger ones
 * only cost. A pure function of what is measured: it goes on after a break, and where the budget was raised, it goes
 * on from where the smaller one ended.
 */
import type { SurfacePoint } from '@moefleet/proto';
import { baselineOf, pointOf } from './quality-surface';

/** Most of the gain is had by λ 0.1 to 0.3, so the grid is dense there. */
export const LAMBDA_GRID = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1] as const;
export const TOP_J_GRID = [1, 2, 3] as const;

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
  for (const topJ of TOP_J_GRID.filter((topJ) => topJ <= limits.topK)) {
    let before: SurfacePoint = baseline;
    for (const lambda of LAMBDA_GRID) {
      const point = pointOf(points, lambda, topJ);
      if (!point) return { lambda, topJ };
      if (beyondBudget(point, limits.budgetNats) || savesNothing(before, point)) break;
      before = point;
    }
  }
  return null;
}

/** Every expert stays in memory once read: there is nothing for λ to save. */
export function holdsEverything({ capacities, experts }: Pick<GridLimits, 'capacities' | 'experts'>): boolean {
  return capacities.every((capacity) => capacity >= experts);
}

function beyondBudget(point: SurfacePoint, budgetNats: number): boolean {
  return point.crossEntropyLoss - CLEAR_STDERRS * point.crossEntropyLossStderr > budgetNats;
}

function savesNothing(before: SurfacePoint, point: SurfacePoint): boolean {
  return point.missRate > before.missRate * (1 - LEAST_GAIN);
}
