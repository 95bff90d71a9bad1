import { Routing } from '@moefleet/proto';
import fc from 'fast-check';
import { QualitySurface } from './quality-surface';
import type { Setting } from './setting';
import { domain, point, SHAPE, trueLoss, trueMissRate } from './testing/synthetic';

const setting = (lambda: number, topJ: number, capacity: number): Setting => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities: [capacity, capacity] });
const one = new QualitySurface([domain('a')], SHAPE);

test('gives back what was measured, with its error', () => {
  const { loss, missRate, measured } = one.predict(setting(0.2, 1, 16))!;
  expect(loss.mean).toBeCloseTo(trueLoss(0.2, 1, 16), 12);
  expect(loss.stderr).toBeCloseTo(0.0004, 12);
  expect(missRate).toBeCloseTo(trueMissRate(0.2, 1, 16), 12);
  expect(measured).toBe(true);
  expect(one.predict(setting(0, 3, 16))!.loss).toEqual({ mean: 0, stderr: 0, upper: 0 });
});

test('between points errs on the side of more loss and more misses, where the truth is convex', () => {
  fc.assert(fc.property(fc.double({ min: 0, max: 0.4, noNaN: true }), fc.integer({ min: 8, max: 32 }), fc.constantFrom(1, 2), (lambda, capacity, topJ) => {
    const { loss, missRate } = one.predict(setting(lambda, topJ, capacity))!;
    expect(loss.mean).toBeGreaterThanOrEqual(trueLoss(lambda, topJ, capacity) - 1e-9);
    expect(missRate).toBeGreaterThanOrEqual(trueMissRate(lambda, topJ, capacity) - 1e-9);
    expect(loss.upper).toBeGreaterThanOrEqual(loss.mean);
  }));
});

test('is less sure of a loss the further the points around it are apart', () => {
  const bowed = new QualitySurface([{ domain: 'a', points: domain('a', { capacities: [8, 12, 16] }).points.map((each) => (each.lambda === 0.2 && each.capacities[0] === 12 ? { ...each, loss: trueLoss(0.2, each.topJ, 8) } : each)) }], SHAPE);
  const without = new QualitySurface([domain('a', { capacities: [8, 16] })], SHAPE);
  // A capacity that costs as much as a smaller one is still below the upper bound of what was read off between.
  expect(without.predict(setting(0.2, 1, 12))!.loss.upper).toBeGreaterThan(bowed.predict(setting(0.2, 1, 12))!.loss.mean * 0.95);
  expect(without.predict(setting(0.2, 1, 12))!.loss.stderr).toBeGreaterThan(one.predict(setting(0.2, 1, 12))!.loss.stderr * 0.999);
});

test('never says that more λ costs less or misses more, whatever was measured', () => {
  const rate = fc.double({ min: 0, max: 1, noNaN: true });
  fc.assert(fc.property(fc.array(fc.tuple(fc.double({ min: -0.05, max: 0.2, noNaN: true }), rate), { minLength: 4, maxLength: 4 }), rate, (measured, base) => {
    const points = measured.map(([loss, missRate], i) => point((i + 1) / 10, 1, 16, { loss, missRate }));
    const surface = new QualitySurface([{ domain: 'a', points: [point(0, 0, 16, { missRate: base }), ...points] }], SHAPE);
    const read = surface.candidates([16, 16]);
    expect(read).toHaveLength(41);
    read.slice(1).forEach(({ quality }, i) => {
      expect(quality.loss.mean).toBeGreaterThanOrEqual(read[i]!.quality.loss.mean - 1e-12);
      expect(quality.missRate).toBeLessThanOrEqual(read[i]!.quality.missRate + 1e-12);
    });
  }));
});

test('says nothing outside of what was measured, and nothing is lost where every expert is resident', () => {
  expect(one.predict(setting(0.2, 1, 7))).toBeNull();
  expect(one.predict(setting(0.41, 1, 16))).toBeNull();
  expect(one.predict(setting(0.2, 3, 16))).toBeNull();
  expect(one.predict({ ...setting(0.2, 1, 16), capacities: [16] })).toBeNull();
  expect(new QualitySurface([], SHAPE).predict(setting(0, 0, 16))).toBeNull();
  expect(one.predict(setting(0.4, 1, 32))).toMatchObject({ missRate: 0, loss: { mean: 0 } });
});

test('reads each layer at its own capacity', () => {
  const uneven = one.predict({ ...setting(0.2, 1, 16), capacities: [8, 24] })!;
  expect(uneven.measured).toBe(false);
  expect(uneven.layerMissRates[0]).toBeCloseTo(trueMissRate(0.2, 1, 8), 12);
  expect(uneven.layerMissRates[1]).toBeCloseTo(trueMissRate(0.2, 1, 24), 12);
});

test('tells the mean and the worst domain, and does not take noise for a bad domain', () => {
  const names = ['a', 'b', 'c', 'd'];
  const apart = new QualitySurface(names.map((name, i) => domain(name, { harder: i === 3 ? 3 : 1 })), SHAPE).predict(setting(0.3, 1, 16))!;
  expect(apart.worst.domain).toBe('d');
  expect(apart.worst.mean).toBeCloseTo(3 * trueLoss(0.3, 1, 16), 3);
  expect(apart.loss.stderr).toBeGreaterThan(0.0004);

  const noisy = names.map((name, i) => ({ domain: name, points: domain(name).points.map((one) => (one.lambda === 0 ? one : { ...one, loss: one.loss + (i === 3 ? 0.01 : 0), stderr: 0.01 })) }));
  const drawn = new QualitySurface(noisy, SHAPE).predict(setting(0.3, 1, 16))!;
  const own = trueLoss(0.3, 1, 16) + 0.01;
  expect(drawn.domains[3]!.mean).toBeLessThan(own - 0.003);
});

test.each([
  ['NaN', { loss: Number.NaN }], ['a negative error', { stderr: -1 }], ['a miss rate above 1', { missRate: 1.2 }], ['λ above 1', { lambda: 1.5 }],
  ['another model\'s layers', { capacities: [16, 16, 16] }], ['a capacity above the experts', { capacities: [33, 16] }], ['layers that make no sense', { layerMissRates: [2, 0] }],
])('sets a point with %s aside', (_, changed) => {
  const { points } = domain('a');
  const surface = new QualitySurface([{ domain: 'a', points: [...points, point(0.35, 1, 16, changed)] }], SHAPE);
  expect(surface.setAside).toBe(1);
  expect(surface.predict(setting(0.35, 1, 16))!.loss.mean).toBeCloseTo(one.predict(setting(0.35, 1, 16))!.loss.mean, 12);
});

test('each routing has lines of its own, and offers what a device can be given', () => {
  const { ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_PRUNED } = Routing;
  const other = (routing: Routing, lambda: number, loss: number) => point(lambda, 1, 16, { routing, loss });
  const surface = new QualitySurface([{ domain: 'a', points: [
    point(0, 0, 16), point(0.2, 1, 16), other(ROUTING_MAX_RANK, 0.5, 0.004), other(ROUTING_PRUNED, 1, 0.006),
  ] }], SHAPE);
  const at = (routing: Routing, lambda: number) => surface.predict({ ...setting(lambda, 1, 16), routing });
  expect(at(ROUTING_CACHE_PRIOR, 0.2)!.loss.mean).toBeCloseTo(trueLoss(0.2, 1, 16), 12);
  expect(at(ROUTING_MAX_RANK, 0.25)!.loss.mean).toBeCloseTo(0.002, 12);
  expect(at(ROUTING_MAX_RANK, 0.6)).toBeNull();
  const offered = (routing: Routing) => surface.candidates([16, 16]).filter((each) => each.setting.lambda > 0 && each.setting.routing === routing).map((each) => each.setting.lambda);
  expect(offered(ROUTING_CACHE_PRIOR)).toHaveLength(20);
  // Of 28 ranks beyond the top 4.
  expect(offered(ROUTING_MAX_RANK)).toEqual(Array.from({ length: 14 }, (_, i) => (i + 1) / 28));
  expect(offered(ROUTING_PRUNED)).toEqual([1]);
  expect(surface.candidates([16, 16])[0]!.setting).toMatchObject({ routing: ROUTING_CACHE_PRIOR, lambda: 0 });
});
