import { DeviceSpec, Eviction, ModelState, Proposal, Routing, ValueSource_Layer as Layer } from '@moefleet/proto';
import { parseSelector } from '@moefleet/runtime';
import type { PinSet } from '../registry/pin';
import { effectiveSpec, type SpecInputs } from './effective-spec';

const A = 'aa'.repeat(32);
const B = 'bb'.repeat(32);

function model(hash: string): ModelState {
  return { ...ModelState.decode(new Uint8Array()), hash, topK: 4, experts: 32, moeLayers: [1, 2, 3] };
}

function proposal(change: Partial<Proposal>): Proposal {
  return { ...Proposal.decode(new Uint8Array()), modelHash: A, proposed: true, reason: 'best within 1%', ...change };
}

function inputs(change: Partial<SpecInputs>): SpecInputs {
  return { labels: { class: 'phone', site: 'lab' }, model: model(A), devicePins: {}, shared: { fleet: {}, groups: [] }, learned: undefined, ...change };
}

function lambdaPin(lambda: number, order = 1, topJ: number | null = null, modelHashes: string[] = [A]): PinSet {
  return { lambda: { order, why: '', modelHashes, lambda, topJ } };
}

function group(selector: string, pins: PinSet) {
  return { selector, matches: parseSelector(selector), pins };
}

function layerOf(spec: SpecInputs, field = 'lambda'): Layer | undefined {
  return effectiveSpec(spec).sources.find((source) => source.field === field)?.layer;
}

test('asks for nothing where nothing is set, so that the device keeps its defaults', () => {
  const { spec, sources } = effectiveSpec(inputs({}));
  expect(spec).toEqual(DeviceSpec.fromPartial({}));
  expect(DeviceSpec.encode(spec).finish()).toHaveLength(0);
  expect(new Set(sources.map((source) => source.layer))).toEqual(new Set([Layer.LAYER_DEFAULT]));
});

test('takes the first that is set of device, group, fleet, learner', () => {
  const learned = proposal({ lambda: 0.1 });
  const fleet = lambdaPin(0.2);
  const groups = [group('class=phone', lambdaPin(0.3))];
  const all = inputs({ learned, devicePins: lambdaPin(0.4), shared: { fleet, groups } });
  expect(effectiveSpec(all).spec.lambda).toBe(0.4);
  expect(layerOf(all)).toBe(Layer.LAYER_DEVICE_PIN);
  expect(effectiveSpec({ ...all, devicePins: {} }).spec.lambda).toBe(0.3);
  expect(effectiveSpec({ ...all, devicePins: {}, shared: { fleet, groups: [] } }).spec.lambda).toBe(0.2);
  expect(layerOf({ ...all, devicePins: {}, shared: { fleet, groups: [] } })).toBe(Layer.LAYER_FLEET_PIN);
  expect(effectiveSpec({ ...all, devicePins: {}, shared: { fleet: {}, groups: [] } }).spec.lambda).toBe(0.1);
});

test('the learner\'s routing is the device\'s, with what that reads; one that this release does not know bends nothing', () => {
  const of = (change: Partial<Proposal>) => effectiveSpec(inputs({ learned: proposal({ topJ: 1, ...change }) })).spec;
  expect(of({ routing: Routing.ROUTING_MAX_RANK, maxRank: 12 })).toMatchObject({ routing: Routing.ROUTING_MAX_RANK, lambda: 0, topJ: 1, maxRank: 12, massThreshold: undefined, modelHash: A });
  expect(of({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, massThreshold: 0.7 })).toMatchObject({ routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: 0, massThreshold: 0.7 });
  expect(of({ routing: Routing.ROUTING_PRUNED })).toMatchObject({ routing: Routing.ROUTING_PRUNED, lambda: 0 });
  for (const routing of [Routing.ROUTING_UNSPECIFIED, Routing.ROUTING_CACHE_PRIOR]) expect(of({ routing, lambda: 0.2 })).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, maxRank: undefined });
  expect(of({ routing: 99 as Routing })).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0 });
});

test('a pinned lambda of 0 is a value, not the absence of one', () => {
  const { spec } = effectiveSpec(inputs({ learned: proposal({ lambda: 0.3 }), shared: { fleet: lambdaPin(0), groups: [] } }));
  expect(spec.lambda).toBe(0);
  expect(spec.routing).toBe(Routing.ROUTING_CACHE_PRIOR);
});

test('of several groups a device belongs to, the newest pin wins whatever their order', () => {
  const old = group('class=phone', lambdaPin(0.1, 5));
  const recent = group('site=lab', lambdaPin(0.2, 9));
  for (const groups of [[old, recent], [recent, old]]) {
    const found = effectiveSpec(inputs({ shared: { fleet: {}, groups } }));
    expect(found.spec.lambda).toBe(0.2);
    expect(found.sources[0]).toEqual({ field: 'lambda', layer: Layer.LAYER_GROUP_PIN, detail: 'site=lab' });
  }
});

test('a group pin needs every one of its labels', () => {
  expect(effectiveSpec(inputs({ shared: { fleet: {}, groups: [group('class=phone,site=roof', lambdaPin(0.1))] } })).spec.lambda).toBeUndefined();
});

test('each field has its own source', () => {
  const learned = proposal({ lambda: 0.1, topJ: 1, capacities: [8, 9, 10] });
  const { spec, sources } = effectiveSpec(inputs({ learned, shared: { fleet: lambdaPin(0.25), groups: [] }, devicePins: { tracing: { order: 2, why: 'debug', traceRatio: 0.5 } } }));
  expect(spec.lambda).toBe(0.25);
  expect(spec.cache).toEqual({ $case: 'capacities', value: { experts: [8, 9, 10] } });
  expect(spec.traceRatio).toBe(0.5);
  expect(Object.fromEntries(sources.map((source) => [source.field, source.layer]))).toEqual({
    lambda: Layer.LAYER_FLEET_PIN, top_j: Layer.LAYER_DEFAULT, routing: Layer.LAYER_FLEET_PIN, eviction: Layer.LAYER_DEFAULT, capacities: Layer.LAYER_LEARNER, trace_ratio: Layer.LAYER_DEVICE_PIN, router_sampling: Layer.LAYER_DEFAULT, agent: Layer.LAYER_DEFAULT, model: Layer.LAYER_DEFAULT,
  });
});

test('never combines a pinned lambda with a topJ the learner chose for another lambda', () => {
  expect(effectiveSpec(inputs({ learned: proposal({ lambda: 0.1, topJ: 0 }), devicePins: lambdaPin(0.9) })).spec.topJ).toBeUndefined();
  expect(effectiveSpec(inputs({ devicePins: lambdaPin(0.9, 1, 3) })).spec.topJ).toBe(3);
});

test('a pinned method comes whole, with nothing of what another layer says of lambda', () => {
  const fleet: PinSet = { lambda: { order: 1, why: '', modelHashes: [A], lambda: 0, topJ: null, method: 'max_rank', maxRank: 8, biasPrefill: true, firstBiasedLayer: 1 } };
  const { spec } = effectiveSpec(inputs({ learned: proposal({ lambda: 0.3, topJ: 0 }), shared: { fleet, groups: [] } }));
  expect(spec).toMatchObject({ routing: Routing.ROUTING_MAX_RANK, lambda: 0, topJ: undefined, maxRank: 8, massThreshold: undefined, biasPrefill: true, firstBiasedLayer: 1, modelHash: A });
  const finer = effectiveSpec(inputs({ devicePins: lambdaPin(0.2), shared: { fleet, groups: [] } }));
  expect(finer.spec).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, maxRank: undefined, biasPrefill: undefined });
});

test('lists of lambda and topJ go to the device as they were pinned', () => {
  const devicePins: PinSet = { lambda: { order: 1, why: '', modelHashes: [A], lambda: 0.1, topJ: null, lambdas: [0.1, 0.2, 0.3], topJs: [2, 1, 1] } };
  const { spec, sources } = effectiveSpec(inputs({ devicePins }));
  expect(spec).toMatchObject({ lambda: 0.1, lambdas: [0.1, 0.2, 0.3], topJs: [2, 1, 1], routing: Routing.ROUTING_CACHE_PRIOR });
  expect(sources.find(({ field }) => field === 'top_j')?.layer).toBe(Layer.LAYER_DEVICE_PIN);
});

test('eviction is pinned apart from routing, and belongs to a model as it does', () => {
  const fleet: PinSet = { eviction: { order: 1, why: '', modelHashes: [A], policy: 'lfu', halfLifeTokens: 64 } };
  expect(effectiveSpec(inputs({ learned: proposal({ lambda: 0.3 }), shared: { fleet, groups: [] } })).spec)
    .toMatchObject({ lambda: 0.3, eviction: Eviction.EVICTION_LFU, evictionHalfLifeTokens: 64, modelHash: A });
  expect(effectiveSpec(inputs({ shared: { fleet, groups: [] } })).spec.modelHash).toBe(A);
  expect(effectiveSpec(inputs({ model: model(B), shared: { fleet, groups: [] } })).spec).toMatchObject({ eviction: Eviction.EVICTION_UNSPECIFIED, modelHash: '' });
});

test('values made for one model do not hold on another', () => {
  const onB = inputs({ model: model(B), learned: proposal({ lambda: 0.3 }), shared: { fleet: lambdaPin(0.25), groups: [] } });
  expect(effectiveSpec(onB).spec.lambda).toBeUndefined();
  expect(effectiveSpec(onB).sources[0]).toEqual({ field: 'lambda', layer: Layer.LAYER_DEFAULT, detail: 'the fleet pin was set for another model' });
  expect(effectiveSpec(inputs({ model: model(B), devicePins: lambdaPin(0.4), shared: { fleet: lambdaPin(0.2, 1, null, [A, B]), groups: [] } })).spec.lambda).toBe(0.2);
});

test('carries the hash of the model its values are for, and none where no value depends on it', () => {
  expect(effectiveSpec(inputs({ devicePins: lambdaPin(0.4) })).spec.modelHash).toBe(A);
  expect(effectiveSpec(inputs({ devicePins: { tracing: { order: 1, why: '', traceRatio: 0 } } })).spec.modelHash).toBe('');
  expect(effectiveSpec(inputs({ model: undefined, devicePins: lambdaPin(0.4, 1, null, []) })).spec).toMatchObject({ lambda: 0.4, modelHash: '' });
});

test('a capacity pin speaks for every layer of the model, and waits until there is one', () => {
  const devicePins: PinSet = { cache: { order: 1, why: '', modelHashes: [A], size: { t: 'capacity', capacity: 12 } } };
  expect(effectiveSpec(inputs({ devicePins })).spec.cache).toEqual({ $case: 'capacities', value: { experts: [12, 12, 12] } });
  expect(effectiveSpec(inputs({ devicePins, model: undefined })).spec.cache).toBeUndefined();
});

test('a pin in bytes holds for any model', () => {
  const devicePins: PinSet = { cache: { order: 1, why: '', modelHashes: [], size: { t: 'bytes', cacheBytes: 4096 } } };
  expect(effectiveSpec(inputs({ devicePins, model: model(B) })).spec).toMatchObject({ cache: { $case: 'cacheBytes', value: 4096n }, modelHash: '' });
});
