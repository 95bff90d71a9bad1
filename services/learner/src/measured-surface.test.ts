import { Routing, SurfacePoint } from '@moefleet/proto';
import { emptySurface, type MeasuredSurface, pointAt, toDomain, whyUnusable, withPoint } from './measured-surface';

const DOMAIN = { name: 'wiki', textHash: 'text-a' };
const SUBJECT = { modelName: 'a', modelHash: 'model-a', domains: [DOMAIN], moeLayers: 2, experts: 32, topK: 4, expertBytes: [1, 1], engineVersion: 'v1' };
const { ROUTING_CACHE_PRIOR: routing, ROUTING_MAX_RANK } = Routing;
const at = (lambda: number, topJ: number, missRate = 0.2) => SurfacePoint.fromPartial({ routing, lambda, topJ, capacities: [16, 16], missRate, layerMissRates: [0.1, 0.3] });
const STORED: MeasuredSurface = { ...withPoint(emptySurface(SUBJECT, DOMAIN, 512), at(0, 0)), baselineWindows: [4, 4.5] };

test('goes on from a surface of the same model, text, tokens and engine', () => {
  expect(whyUnusable(STORED, SUBJECT, DOMAIN, 512)).toBeNull();
  expect(whyUnusable(emptySurface(SUBJECT, DOMAIN, 512), SUBJECT, DOMAIN, 512)).toBeNull();
});

test.each<[string, Partial<MeasuredSurface>, RegExp]>([
  ['another model', { modelHash: 'model-b' }, /of model model-b, not model-a/], ['another text', { textHash: 'text-b' }, /of text text-b/],
  ['another part of the text', { tokens: 1024 }, /measured on 1024 tokens/], ['other windows', { context: 128 }, /in windows of 128/],
  ['another engine', { engineVersion: '' }, /by engine ""/], ['no windows at λ 0', { baselineWindows: [] }, /windows at λ 0/],
  ['a baseline that is no number', { baselineCrossEntropy: Number.NaN }, /no numbers/], ['a point that is no number', { points: [at(0.1, 1, Infinity)] }, /no numbers/],
])('does not go on from one of %s', (_, wrong, reason) => {
  expect(whyUnusable({ ...STORED, ...wrong }, SUBJECT, DOMAIN, 512)).toMatch(reason);
});

test('holds one point of each setting, the latest', () => {
  const surface = withPoint(withPoint(STORED, at(0.1, 1)), at(0.1, 1, 0.15));
  expect(surface.points).toHaveLength(2);
  expect(pointAt(surface, { routing, lambda: 0.1, topJ: 1, capacities: [16, 16] })!.missRate).toBe(0.15);
  expect(pointAt(surface, { routing, lambda: 0, topJ: 3, capacities: [16, 16] })).toBeDefined();
  expect(pointAt(surface, { routing, lambda: 0.1, topJ: 2, capacities: [16, 16] })).toBeUndefined();
  const both = withPoint(surface, { ...at(0.1, 1, 0.19), routing: ROUTING_MAX_RANK });
  expect(both.points.map(({ missRate }) => missRate)).toEqual([0.2, 0.15, 0.19]);
});

test('layers that are not all there stand for the whole', () => {
  const [whole, partial] = toDomain({ ...STORED, points: [at(0.1, 1), { ...at(0.2, 1), layerMissRates: [0.5] }] }, [routing]).points;
  expect(whole!.layerMissRates).toEqual([0.1, 0.3]);
  expect(partial!.layerMissRates).toBeUndefined();
});

test('what was measured of a routing that is not asked for is kept and not chosen from', () => {
  const points = [at(0, 0), at(0.1, 1), { ...at(0.5, 1), routing: ROUTING_MAX_RANK }];
  expect(toDomain({ ...STORED, points }, [routing]).points.map(({ lambda }) => lambda)).toEqual([0, 0.1]);
  expect(toDomain({ ...STORED, points }, [ROUTING_MAX_RANK]).points.map(({ lambda }) => lambda)).toEqual([0, 0.5]);
});
