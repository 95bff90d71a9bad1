import { DeviceSpec, Routing } from '@moefleet/proto';
import { effectiveSpec, type Limits, LimitError, maxCapacities, shrinkToBytes } from './effective-spec';
import { SpecError } from './spec-error';
import { testModel } from './testing/test-model';

const model = testModel(); // 4 layers, 8 experts of 100 bytes, top-2: a token touches 800 bytes
const limits: Limits = { maxCacheBytes: 2000, maxLambda: 0.5, traceRatio: 0.25 };
const effective = (spec: Partial<DeviceSpec>, over: Partial<Limits> = {}) =>
  effectiveSpec(DeviceSpec.fromPartial(spec), 7, { ...limits, ...over }, model);

test('nothing asked for is lambda 0 with as much cache as the device allows', () => {
  const { routing, adjustments, traceRatio, routerSampling, cacheBytes } = effective({});
  expect(routing).toEqual({
    routing: 'cache_prior', lambda: 0, topJ: 2, capacities: [5, 5, 5, 5], generation: 7,
    lambdas: null, topJs: null, firstBiasedLayer: 0, biasPrefill: false, eviction: 'adaptive', evictionHalfLifeTokens: 0,
  });
  expect({ adjustments, traceRatio, routerSampling, cacheBytes }).toEqual({ adjustments: [], traceRatio: 0.25, routerSampling: null, cacheBytes: 2000 });
});

test('what is asked for and possible is granted as it is', () => {
  const { routing, adjustments, traceRatio } = effective({
    lambda: 0.3, topJ: 0, routing: Routing.ROUTING_ORIGINAL, traceRatio: 0, modelHash: model.hash,
    cache: { $case: 'capacities', value: { experts: [8, 2, 3, 7] } },
  });
  expect(routing).toMatchObject({ routing: 'original', lambda: 0.3, topJ: 0, capacities: [8, 2, 3, 7], generation: 7 });
  expect(adjustments).toEqual([]);
  expect(traceRatio).toBe(0);
});

test('the device\'s limits clamp last, and say so', () => {
  const { routing, adjustments } = effective({ lambda: 0.9, topJ: 5, cache: { $case: 'cacheBytes', value: 1n << 50n } });
  expect(routing).toMatchObject({ lambda: 0.5, topJ: 2, capacities: [5, 5, 5, 5] });
  expect(adjustments.map(({ field }) => field)).toEqual(['lambda', 'top_j', 'cache_bytes']);
  expect(adjustments[0]).toEqual({ field: 'lambda', asked: '0.9', effective: '0.5', reason: expect.stringContaining('--max-lambda') });
});

test('capacities that do not fit are cut where they are largest', () => {
  const { routing, adjustments, cacheBytes } = effective({ cache: { $case: 'capacities', value: { experts: [99, 8, 1, 4] } } });
  expect(routing.capacities).toEqual([7, 7, 2, 4]);
  expect(cacheBytes).toBe(2000);
  expect(adjustments.map(({ effective: granted }) => granted)).toEqual(['8,8,2,4', '7,7,2,4']);
});

test('what reads ahead wait in counts against the limit, and gives way to the experts of one token', () => {
  const ahead = effective({}, { prefetch: 'auto' }); // one slot of 100 bytes
  expect(ahead.routing).toMatchObject({ prefetch: 'auto', capacities: [5, 5, 5, 4] });
  expect(ahead.cacheBytes).toBe(1900);
  expect(effective({ cache: { $case: 'capacities', value: { experts: [5, 5, 5, 5] } } }, { prefetch: 'on' }).cacheBytes).toBe(1900);
  const tight = effective({}, { prefetch: 'on', maxCacheBytes: 850 });
  expect(tight.cacheBytes).toBe(800);
  expect(tight.routing).not.toHaveProperty('prefetch');
});

test('while memory is short less is held, down to one token cycle, and the report says why', () => {
  const short = (bytes: number, spec: Partial<DeviceSpec> = {}) => effectiveSpec(DeviceSpec.fromPartial(spec), 7, limits, model, { bytes, reason: '3 bytes are left' });
  expect(short(1500)).toMatchObject({ cacheBytes: 1500, wantedBytes: 2000, adjustments: [{ field: 'cache_bytes', asked: '2000', effective: '1500', reason: 'memory is short: 3 bytes are left' }] });
  expect(short(0).routing.capacities).toEqual([2, 2, 2, 2]);
  expect(short(5000)).toMatchObject({ cacheBytes: 2000, adjustments: [] });
  expect(short(1000, { cache: { $case: 'capacities', value: { experts: [4, 4, 4, 4] } } })).toMatchObject({ wantedBytes: 1600, cacheBytes: 1000, adjustments: [{ field: 'capacities' }] });
});

test('a size below one token cycle is raised to it', () => {
  expect(effective({ cache: { $case: 'cacheBytes', value: 5n } }).routing.capacities).toEqual([2, 2, 2, 2]);
});

test('with another model loaded, lambda, topJ and capacities are the device\'s own', () => {
  const { routing, adjustments } = effective({ lambda: 0.3, topJ: 1, modelHash: 'ff'.repeat(32), cache: { $case: 'capacities', value: { experts: [2, 2] } } });
  expect(routing).toMatchObject({ lambda: 0, topJ: 2, capacities: [5, 5, 5, 5] });
  expect(adjustments.map(({ field }) => field)).toEqual(['lambda', 'top_j', 'capacities']);
});

test('a list of the wrong length fails a spec made for this model, and is adjusted in a pin for any', () => {
  const cache = { $case: 'capacities' as const, value: { experts: [4, 4, 4] } };
  expect(() => effective({ cache, modelHash: model.hash })).toThrow(/expected 4 entries.*found 3/);
  const { routing, adjustments } = effective({ cache });
  expect(routing.capacities).toEqual([5, 5, 5, 5]);
  expect(adjustments).toHaveLength(1);
});

test.each([[{ lambda: 1.01 }, /lambda: 1.01/], [{ lambda: -0.1 }, /lambda/], [{ lambda: NaN }, /NaN/], [{ traceRatio: 2 }, /trace_ratio: 2/],
  [{ routing: 9 as Routing }, /routing: 9/], [{ routerSampling: { windowTokens: 0, bytesPerHour: 1n } }, /window_tokens: 0/]])('refuses %j', (spec, says) => {
  expect(() => effective(spec)).toThrow(SpecError);
  expect(() => effective(spec)).toThrow(says);
});

test('a limit below one token cycle is refused with the arithmetic', () => {
  const tight = { ...limits, maxCacheBytes: 799 };
  expect(() => maxCapacities(tight, model)).toThrow(LimitError);
  expect(() => maxCapacities(tight, model)).toThrow(/800 bytes.*2 of 8.*4 layers.*799/);
});

test('shrinking never goes below what one token needs', () => {
  expect(shrinkToBytes([3, 8], [100, 10], 2, 0)).toEqual([2, 2]);
  expect(shrinkToBytes([3, 8], [100, 10], 2, 10_000)).toEqual([3, 8]);
});
