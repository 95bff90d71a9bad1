import { Routing, type SurfacePoint } from '@moefleet/proto';
import { LAMBDA_GRID, nextPoint, TOP_J_GRID } from './grid-walk';

const LIMITS = { capacities: [16, 16], experts: 32, topK: 4, budgetNats: 0.01 };

/** Walks to the end over a surface given by formulas, and returns the points in the order they were measured. */
function walk(missRate: (lambda: number, topJ: number) => number, loss: (lambda: number, topJ: number) => number, limits = LIMITS, points: SurfacePoint[] = []): SurfacePoint[] {
  for (;;) {
    const next = nextPoint(points, limits);
    if (!next) return points;
    points.push({
      ...next, routing: Routing.ROUTING_CACHE_PRIOR, capacities: limits.capacities, crossEntropyLoss: loss(next.lambda, next.topJ),
      crossEntropyLossStderr: 0.001, missRate: missRate(next.lambda, next.topJ), swapRate: 0, massLost: 0,
    });
  }
}

const falling = (lambda: number) => 0.3 / (1 + 5 * lambda);

test('begins with λ 0, and goes up to λ 1 where nothing ends it', () => {
  const points = walk(falling, () => 0);
  expect(points[0]).toMatchObject({ lambda: 0 });
  expect(points.slice(1).map(({ lambda, topJ }) => [lambda, topJ])).toEqual(LAMBDA_GRID.map((lambda) => [lambda, 1]));
});

test('covers the whole grid where no λ can be afforded and none is clearly too dear', () => {
  // 0.0115 is beyond the budget of 0.01 by one and a half standard errors.
  const points = walk(falling, () => 0.0115);
  expect(points).toHaveLength(1 + LAMBDA_GRID.length * TOP_J_GRID.length);
  expect(new Set(points.map(({ lambda, topJ }) => `${lambda} ${topJ}`)).size).toBe(points.length);
});

test('measures one point that is clearly past the budget, and none after it', () => {
  // 0.15 costs 0.015, beyond the budget by five standard errors.
  const points = walk(falling, (lambda) => lambda * 0.1);
  expect(points.filter((point) => point.topJ === 1).map((point) => point.lambda)).toEqual([0.05, 0.1, 0.15]);
});

test('begins the walk of a larger topJ above what a smaller one can afford', () => {
  // 0.1 costs 0.01 at topJ 1: with its error it is just beyond the budget; 0.05 is not.
  const points = walk(falling, (lambda, topJ) => (lambda * 0.1) / topJ);
  expect(points.filter((point) => point.topJ === 2).map((point) => point.lambda)).toEqual([0.1, 0.15, 0.2, 0.3]);
  expect(points.filter((point) => point.topJ === 3).map((point) => point.lambda)).toEqual([0.2, 0.3, 0.4]);
});

test('ends where λ saves nothing any more', () => {
  const points = walk((lambda) => Math.max(0.1, 0.3 - lambda), () => 0);
  expect(Math.max(...points.map((point) => point.lambda))).toBe(0.3);
});

test('goes on from where a smaller budget had ended it', () => {
  const points = walk(falling, (lambda) => lambda * 0.1);
  const before = points.length;
  expect(nextPoint(points, { ...LIMITS, budgetNats: 0.02 })).toEqual({ lambda: 0.2, topJ: 1 });
  walk(falling, (lambda) => lambda * 0.1, { ...LIMITS, budgetNats: 0.02 }, points);
  expect(points.length).toBeGreaterThan(before);
});

test('measures λ 0 alone where every expert fits', () => {
  expect(walk(falling, () => 0, { ...LIMITS, capacities: [32, 32] })).toHaveLength(1);
});

test('never protects more experts than a token takes', () => {
  expect(new Set(walk(falling, () => 0, { ...LIMITS, topK: 1 }).map((point) => point.topJ))).toEqual(new Set([0, 1]));
});
