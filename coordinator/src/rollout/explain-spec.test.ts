import { ModelState, Proposal, ValueSource_Layer as Layer } from '@moefleet/proto';
import { parseSelector } from '@moefleet/runtime';
import type { PinSet } from '../registry/pin';
import type { SpecInputs } from './effective-spec';
import { explainSpec } from './explain-spec';

const A = 'aa'.repeat(32);
const lambdaPin = (lambda: number, order: number, modelHashes = [A]): PinSet => ({ lambda: { order, why: '', modelHashes, lambda, topJ: null } });
const group = (selector: string, pins: PinSet) => ({ selector, matches: parseSelector(selector), pins });
const inputs = (change: Partial<SpecInputs>): SpecInputs => ({
  labels: { class: 'phone', site: 'lab' }, model: { ...ModelState.decode(new Uint8Array()), hash: A, moeLayers: [1] }, devicePins: {}, shared: { fleet: {}, groups: [] }, learned: undefined, ...change,
});
const explained = (given: SpecInputs, field: string) => explainSpec(given).find(({ source }) => source.field === field)!;

test('names every layer that was overridden, in the order in which they would have won', () => {
  const learned = { ...Proposal.decode(new Uint8Array()), modelHash: A, lambda: 0.1, reason: 'best within 1%' };
  const groups = [group('class=phone', lambdaPin(0.3, 5)), group('site in (lab,roof)', lambdaPin(0.4, 9)), group('!class', lambdaPin(0.9, 10))];
  const { source, overridden } = explained(inputs({ learned, shared: { fleet: lambdaPin(0.2, 1), groups } }), 'lambda');
  expect(source).toEqual({ field: 'lambda', layer: Layer.LAYER_GROUP_PIN, detail: 'site in (lab,roof)' });
  expect(overridden.map(({ layer, detail }) => [layer, detail])).toEqual([[Layer.LAYER_GROUP_PIN, 'class=phone'], [Layer.LAYER_FLEET_PIN, ''], [Layer.LAYER_LEARNER, 'best within 1%']]);
  expect(new Set(overridden.map(({ why }) => why))).toEqual(new Set(['the group pin site in (lab,roof) wins over it']));
  expect(JSON.parse(overridden[1]!.value)).toMatchObject({ lambda: 0.2 });
});

test('says of a pin for another model that it cannot hold', () => {
  const { source, overridden } = explained(inputs({ devicePins: lambdaPin(0.4, 2, ['bb'.repeat(32)]), shared: { fleet: lambdaPin(0.2, 1), groups: [] } }), 'lambda');
  expect(source.layer).toBe(Layer.LAYER_FLEET_PIN);
  expect(overridden).toMatchObject([{ layer: Layer.LAYER_DEVICE_PIN, why: 'it was set for another model' }]);
});

test('has nothing overridden where one layer alone speaks, or none', () => {
  const given = inputs({ devicePins: lambdaPin(0.4, 2) });
  expect(explained(given, 'lambda').overridden).toEqual([]);
  expect(explained(given, 'top_j').overridden).toEqual([]);
  expect(explainSpec(inputs({})).flatMap(({ overridden }) => overridden)).toEqual([]);
});

test('the kill switch overrides every pin', () => {
  const { overridden } = explained(inputs({ devicePins: lambdaPin(0.4, 2), shared: { fleet: {}, groups: [], kill: { why: 'nonsense', sinceMs: 1 } } }), 'lambda');
  expect(overridden).toMatchObject([{ layer: Layer.LAYER_DEVICE_PIN, why: 'the kill switch wins over it' }]);
});
