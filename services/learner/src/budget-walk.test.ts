import { Routing } from '@moefleet/proto';
import { measuredLambdas, nextPoint, type WalkLimits } from './budget-walk';
import { type MeasuredPoint, QualitySurface } from './model';
import { point, SHAPE, trueLoss, trueMissRate } from './model/testing/synthetic';

const { ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED } = Routing;
const LIMITS: WalkLimits = { capacities: [16, 16], shape: SHAPE, routings: [ROUTING_CACHE_PRIOR], budget: { meanNats: 0.01, worstNats: 0.02 } };

type Formula = (lambda: number, topJ: number, capacity: number, routing: Routing) => number;
interface Walk { limits?: WalkLimits; loss?: Formula; missRate?: Formula; points?: MeasuredPoint[] }

/** Walks to the end over a surface given by formulas, and returns the points in the order they were measured. */
function walk({ limits = LIMITS, loss = trueLoss, missRate = trueMissRate, points = [] }: Walk = {}): MeasuredPoint[] {
  for (;;) {
    const domains = [{ domain: 'a', points }];
    const next = nextPoint(new QualitySurface(domains, limits.shape), measuredLambdas(domains), limits);
    if (!next) return points;
    if (points.length > 60) throw new Error('it does not end');
    const capacity = limits.capacities[0]!;
    points.push(point(next.lambda, next.topJ, capacity, {
      routing: next.routing, capacities: limits.capacities, loss: loss(next.lambda, next.topJ, capacity, next.routing), missRate: missRate(next.lambda, next.topJ, capacity, next.routing),
    }));
  }
}

/** The λ at which a topJ's upper bound meets the budget, by search. */
function trueLambda(topJ: number, budget: number): number {
  let lambda = 0;
  while (lambda < 1 && trueLoss(lambda + 0.001, topJ, 16) + 1.645 * 0.0004 <= budget) lambda += 0.001;
  return lambda;
}

test('begins with λ 0, and brackets the λ at which the budget runs out', () => {
  const points = walk();
  expect(points[0]).toMatchObject({ lambda: 0 });
  const line = points.filter(({ topJ, lambda }) => topJ === 1 && lambda > 0);
  const inside = line.filter(({ loss, stderr }) => loss + 1.645 * stderr <= 0.01).map(({ lambda }) => lambda);
  expect(trueLambda(1, 0.01) - Math.max(...inside)).toBeLessThan(0.03);
});

test('needs a third of the points of a full grid, and finds as good a setting', () => {
  const points = walk();
  expect(points.length).toBeLessThanOrEqual(20);
  const fits = points.filter(({ loss, stderr }) => loss + 1.645 * stderr <= 0.01);
  const best = Math.min(...fits.map(({ missRate }) => missRate));
  const possible = Math.min(...[0, 1, 2, 3].map((topJ) => trueMissRate(trueLambda(topJ, 0.01), topJ, 16)));
  expect(best).toBeLessThan(possible * 1.05);
});

test('leaves a topJ early that cannot win', () => {
  // A larger topJ costs as much and misses more.
  const points = walk({ loss: (lambda) => trueLoss(lambda, 1, 16) });
  expect(points.filter(({ topJ }) => topJ === 3).length).toBeLessThan(points.filter(({ topJ }) => topJ === 1).length);
});

test('of the topJ that protects all but one the most it can save is enough to leave it', () => {
  const points = walk({ missRate: (lambda, topJ, capacity) => Math.max(topJ === 3 ? 0.2 : 0, trueMissRate(lambda, topJ, capacity)) });
  expect(points.filter(({ topJ, lambda }) => topJ === 3 && lambda > 0).map(({ lambda }) => lambda)).toEqual([1]);
});

test('goes up to λ 1 where nothing is lost, and stops where nothing is saved', () => {
  expect(Math.max(...walk({ loss: () => 0 }).map(({ lambda }) => lambda))).toBe(1);
  const stopped = walk({ loss: () => 0, missRate: (lambda) => Math.max(0.1, 0.3 - lambda) }).filter(({ topJ }) => topJ !== 3);
  expect(Math.max(...stopped.map(({ lambda }) => lambda))).toBeLessThanOrEqual(0.5);
});

test('ends where even the smallest λ is beyond the budget', () => {
  const points = walk({ limits: { ...LIMITS, budget: { meanNats: 1e-6, worstNats: 1e-6 } } });
  expect(points.length).toBeLessThanOrEqual(1 + 4 * 8);
});

test('goes on from where a smaller budget had ended it, and measures nothing twice', () => {
  const points = walk();
  const before = points.length;
  walk({ points, limits: { ...LIMITS, budget: { meanNats: 0.03, worstNats: 0.06 } } });
  expect(points.length).toBeGreaterThan(before);
  expect(new Set(points.map(({ lambda, topJ }) => `${lambda} ${topJ}`)).size).toBe(points.length);
});

test('measures λ 0 alone where every expert fits, and protects no more experts than a token takes', () => {
  expect(walk({ limits: { ...LIMITS, capacities: [32, 32] } })).toHaveLength(1);
  expect(walk({ limits: { ...LIMITS, shape: { ...SHAPE, topK: 1 } } }).every(({ topJ }) => topJ <= 1)).toBe(true);
});

test('a point counts once it is measured in every domain', () => {
  const at = (lambda: number) => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ: 1, capacities: [16, 16] });
  const lambdas = measuredLambdas([{ points: [at(0), at(0.1), at(0.2)] }, { points: [at(0), at(0.2)] }]);
  const line = { routing: ROUTING_CACHE_PRIOR, topJ: 1 };
  expect(lambdas(line, [16, 16])).toEqual([0, 0.2]);
  expect(lambdas(line, [8, 8])).toEqual([]);
  expect(lambdas({ ...line, routing: ROUTING_MAX_RANK }, [16, 16])).toEqual([0]);
});

describe('with more routings', () => {
  const all = { ...LIMITS, routings: [ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED] };
  const of = (points: readonly MeasuredPoint[], routing: Routing) => points.filter((one) => one.lambda > 0 && one.routing === routing);
  const never = (routing: Routing) => routing !== ROUTING_CACHE_PRIOR;

  test('one that cannot win at its strongest costs a point per topJ, and drops no expert of a token that protects none', () => {
    const points = walk({ limits: all, missRate: (lambda, topJ, capacity, routing) => (never(routing) ? 0.25 : trueMissRate(lambda, topJ, capacity)) });
    for (const routing of [ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD]) expect(of(points, routing).map(({ lambda, topJ }) => [topJ, lambda])).toEqual([[1, 1], [2, 1], [0, 1], [3, 1]]);
    expect(of(points, ROUTING_PRUNED).map(({ topJ }) => topJ)).toEqual([1, 2, 3]);
    expect(points.length - of(points, ROUTING_MAX_RANK).length - of(points, ROUTING_CUMULATIVE_THRESHOLD).length - of(points, ROUTING_PRUNED).length).toBe(walk().length);
  });

  test('one that may win is walked along the budget, at ranks that a device can be given', () => {
    const points = of(walk({ limits: all, missRate: (lambda, topJ, capacity, routing) => trueMissRate(lambda, topJ, capacity) * (routing === ROUTING_MAX_RANK ? 0.5 : 1) }), ROUTING_MAX_RANK);
    const line = points.filter(({ topJ }) => topJ === 1).map(({ lambda }) => lambda);
    expect(line.length).toBeGreaterThan(3);
    for (const lambda of line) expect(lambda * 28).toBeCloseTo(Math.round(lambda * 28), 9);
    const inside = Math.max(...line.filter((lambda) => trueLoss(lambda, 1, 16) + 1.645 * 0.0004 <= 0.01));
    expect(trueLambda(1, 0.01) - inside).toBeLessThan(2 / 28);
  });

  test('a routing asked for later adds its own points alone', () => {
    const points = walk();
    const before = [...points];
    walk({ points, limits: { ...LIMITS, routings: [ROUTING_CACHE_PRIOR, ROUTING_PRUNED] } });
    expect(points.slice(0, before.length)).toEqual(before);
    expect(points.slice(before.length).every(({ routing }) => routing === ROUTING_PRUNED)).toBe(true);
    expect(points.length).toBeGreaterThan(before.length);
  });
});
