/** Why a device's spec is what it is: per field the layer that won, and each that says something else and did not. Pure. */
import { type Proposal, ValueSource_Layer as Layer, type ValueSource } from '@moefleet/proto';
import { selectorMatches } from '@moefleet/runtime';
import type { PinField, PinSet } from '../registry/pin';
import { effectiveSpec, endOf, layerText, learnedChoice, type SpecInputs } from './effective-spec';
import { layersWithStaged } from './staged-layers';

export interface OverriddenLayer { layer: Layer; detail: string; /** JSON */ value: string; why: string; expiresMs?: bigint | undefined }
export interface ExplainedField { source: ValueSource; overridden: OverriddenLayer[] }

const PIN_OF_FIELD: Readonly<Record<string, PinField>> = {
  lambda: 'lambda', top_j: 'lambda', routing: 'lambda', eviction: 'eviction', capacities: 'cache', cache_bytes: 'cache', trace_ratio: 'tracing', router_sampling: 'sampling', agent: 'agent', model: 'model',
};

/** In the order of `effectiveSpec`'s sources. */
export function explainSpec(given: SpecInputs): ExplainedField[] {
  const inputs = layersWithStaged(given);
  return effectiveSpec(given).sources.map((source) => {
    const pinField = PIN_OF_FIELD[source.field];
    const layers = pinField ? standingLayers(pinField, inputs) : [];
    // A default that stands in for a part of a pin (topJ beside a pinned lambda) hides nothing.
    const from = source.layer === Layer.LAYER_DEFAULT ? effectiveSpec(given).sources.find(({ field, layer }) => PIN_OF_FIELD[field] === pinField && layer !== Layer.LAYER_DEFAULT) ?? source : source;
    const won = layers.findIndex((layer) => layer.layer === from.layer && (layer.layer !== Layer.LAYER_GROUP_PIN || layer.detail === from.detail));
    const overridden = layers.filter((_, at) => at !== won).map(({ why, ...layer }) => ({ ...layer, why: why || `the ${layerText(from)} wins over it` }));
    return { source, overridden };
  });
}

/** All that say something of the field, first the one that would win; `why` where it cannot hold at all. */
function standingLayers(field: PinField, { devicePins, shared, labels, model, learned }: SpecInputs): OverriddenLayer[] {
  const pinned = (pins: PinSet, layer: Layer, detail: string): OverriddenLayer[] => {
    const pin = pins[field];
    if (!pin) return [];
    const { why } = pin;
    const value = Object.fromEntries(Object.entries(pin).filter(([name]) => !['order', 'why', 'expiresMs'].includes(name)));
    const hashes = 'modelHashes' in pin && !('size' in pin && pin.size.t === 'bytes') ? pin.modelHashes : [];
    const foreign = hashes.length > 0 && model !== undefined && !hashes.includes(model.hash);
    return [{ layer, detail: detail || why, value: JSON.stringify(value), why: foreign ? 'it was set for another model' : '', expiresMs: endOf(pin) }];
  };
  const groups = shared.groups.filter((group) => selectorMatches(group.matches, labels));
  const byOrder = [...groups].sort((a, b) => (b.pins[field]?.order ?? -1) - (a.pins[field]?.order ?? -1));
  return [
    ...pinned(devicePins, Layer.LAYER_DEVICE_PIN, ''),
    ...byOrder.flatMap((group) => pinned(group.pins, Layer.LAYER_GROUP_PIN, group.selector)),
    ...pinned(shared.fleet, Layer.LAYER_FLEET_PIN, ''),
    ...(learned && (field === 'lambda' || (field === 'cache' && learned.capacities.length > 0)) ? [learnedLayer(field, learned, model?.hash)] : []),
  ];
}

function learnedLayer(field: PinField, learned: Proposal, running: string | undefined): OverriddenLayer {
  const { capacities, reason, modelHash } = learned;
  const value = field === 'lambda' ? learnedChoice(learned) : { capacities };
  return { layer: Layer.LAYER_LEARNER, detail: reason, value: JSON.stringify(value), why: modelHash === running ? '' : 'it is for another model' };
}
