import { DeviceSpec, Eviction, Routing } from '@moefleet/proto';
import { bendsNothing, effectiveRouting } from './effective-routing';
import { SpecError } from './spec-error';
import { testModel } from './testing/test-model';

const { info } = testModel(); // 4 layers, 8 experts, top-2
function effective(spec: Partial<DeviceSpec>, maxLambda = 1, forOther: string | null = null) {
  const adjustments: [string, string, string][] = [];
  const routing = effectiveRouting(DeviceSpec.fromPartial(spec), maxLambda, info, forOther, (field, asked, granted) => adjustments.push([field, String(asked), String(granted)]));
  return { routing, adjustments };
}

test('each method is granted with what it reads, and with its default where that is unset', () => {
  expect(effective({ routing: Routing.ROUTING_MAX_RANK, maxRank: 5 }).routing).toMatchObject({ routing: 'max_rank', maxRank: 5, topJ: 2 });
  expect(effective({ routing: Routing.ROUTING_MAX_RANK }).routing).toMatchObject({ routing: 'max_rank', maxRank: 8 });
  expect(effective({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 0.5 }).routing).toMatchObject({ routing: 'cumulative_threshold', massThreshold: 0.5 });
  expect(effective({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD }).routing).toMatchObject({ massThreshold: 0.9 });
  expect(effective({ routing: Routing.ROUTING_PRUNED, topJ: 1 }).routing).toMatchObject({ routing: 'pruned', topJ: 1 });
  const { routing } = effective({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, maxRank: 5, massThreshold: 0.5 });
  expect(routing).not.toHaveProperty('maxRank');
  expect(routing).not.toHaveProperty('massThreshold');
});

test('layers may differ in lambda and topJ, be left to the model, and prompts may be bent', () => {
  const { routing, adjustments } = effective({ lambdas: [0, 0.1, 0.2, 0.3], topJs: [2, 2, 1, 0], firstBiasedLayer: 1, biasPrefill: true });
  expect(routing).toMatchObject({ lambda: 0, lambdas: [0, 0.1, 0.2, 0.3], topJ: 0, topJs: [2, 2, 1, 0], firstBiasedLayer: 1, biasPrefill: true });
  expect(adjustments).toEqual([]);
});

test('eviction is the policy asked for, and a half-life stays with the policies that read it', () => {
  expect(effective({ eviction: Eviction.EVICTION_LFU, evictionHalfLifeTokens: 64 }).routing).toMatchObject({ eviction: 'lfu', evictionHalfLifeTokens: 64 });
  expect(effective({ eviction: Eviction.EVICTION_LRU, evictionHalfLifeTokens: 64 }).routing).toMatchObject({ eviction: 'lru', evictionHalfLifeTokens: 0 });
  expect(effective({}).routing).toMatchObject({ eviction: 'adaptive', evictionHalfLifeTokens: 0 });
});

test('the device\'s highest lambda bounds every layer, and leaves no method that has no strength to lower', () => {
  expect(effective({ lambdas: [0.1, 0.5, 0.9, 0.2] }, 0.4)).toMatchObject({ routing: { lambdas: [0.1, 0.4, 0.4, 0.2] }, adjustments: [['lambdas', '0.1,0.5,0.9,0.2', '0.1,0.4,0.4,0.2']] });
  for (const routing of [Routing.ROUTING_MAX_RANK, Routing.ROUTING_CUMULATIVE_THRESHOLD, Routing.ROUTING_PRUNED]) {
    expect(effective({ routing }, 0.99)).toMatchObject({ routing: { routing: 'original' }, adjustments: [['routing', expect.any(String), 'original']] });
    expect(effective({ routing }).routing.routing).not.toBe('original');
  }
});

test('with another model loaded nothing is bent, and the cache is the default one', () => {
  const { routing, adjustments } = effective({ routing: Routing.ROUTING_MAX_RANK, topJ: 1, firstBiasedLayer: 3, biasPrefill: true, eviction: Eviction.EVICTION_LFU, evictionHalfLifeTokens: 9 }, 1, 'made for another');
  expect(routing).toEqual({ routing: 'original', lambda: 0, lambdas: null, topJ: 2, topJs: null, firstBiasedLayer: 0, biasPrefill: false, eviction: 'adaptive', evictionHalfLifeTokens: 0 });
  expect(adjustments.map(([field]) => field)).toEqual(['top_j', 'routing', 'eviction']);
  expect(effective({ lambdas: [0.1, 0.2] }, 1, 'made for another')).toMatchObject({ routing: { lambda: 0, lambdas: null }, adjustments: [['lambda', '0.1,0.2', '0']] });
});

test('what the model has no room for is cut to what it has', () => {
  expect(effective({ routing: Routing.ROUTING_MAX_RANK, maxRank: 99 })).toMatchObject({ routing: { maxRank: 8 }, adjustments: [['max_rank', '99', '8']] });
  expect(effective({ routing: Routing.ROUTING_MAX_RANK, maxRank: 1 })).toMatchObject({ routing: { maxRank: 2 } });
  expect(effective({ topJs: [9, 1, 1, 1] })).toMatchObject({ routing: { topJs: [2, 1, 1, 1] }, adjustments: [['top_js', '9,1,1,1', '2,1,1,1']] });
  expect(effective({ firstBiasedLayer: 40 })).toMatchObject({ routing: { firstBiasedLayer: 4 }, adjustments: [['first_biased_layer', '40', '4']] });
});

test('a list of the wrong length fails a spec made for a model, and is replaced in a pin for any', () => {
  expect(() => effective({ lambdas: [0.1, 0.2], modelHash: 'ab' })).toThrow(/lambdas: expected 4 entries.*found 2/);
  expect(effective({ lambda: 0.3, lambdas: [0.1, 0.2] })).toMatchObject({ routing: { lambda: 0.3, lambdas: null }, adjustments: [['lambdas', '0.1,0.2', '0.3']] });
});

test.each([
  [{ routing: 9 as Routing }, /routing: 9 is unknown/], [{ eviction: 9 as Eviction }, /eviction: 9 is unknown/],
  [{ lambdas: [0.1, 2, 0, 0] }, /lambdas: 2/], [{ massThreshold: -1 }, /mass_threshold: -1/], [{ evictionHalfLifeTokens: Infinity }, /half_life_tokens: Infinity/],
  [{ routing: Routing.ROUTING_PRUNED, topJ: 0 }, /top_j.*1 or more/], [{ routing: Routing.ROUTING_PRUNED, topJs: [1, 0, 1, 1] }, /top_j/],
])('refuses %j', (spec, says) => {
  expect(() => effective(spec)).toThrow(SpecError);
  expect(() => effective(spec)).toThrow(says);
});

test('a strength of 0 in every layer bends nothing, whatever the list looks like', () => {
  expect(bendsNothing({ routing: 'cache_prior', lambda: 0, lambdas: [0, 0] })).toBe(true);
  expect(bendsNothing({ routing: 'cache_prior', lambda: 0, lambdas: [0, 0.1] })).toBe(false);
  expect(bendsNothing({ routing: 'original', lambda: 0.5, lambdas: null })).toBe(true);
  expect(bendsNothing({ routing: 'max_rank', lambda: 0, lambdas: null })).toBe(false);
});
