/** The layers as they are for one device: values of rollouts under way stand in for those of their layers. Pure. */
import { type GroupPins, type PinPlace, type PinSet } from '../registry/pin';
import type { StagedValue } from '../registry/staged-value';
import type { SpecInputs } from './effective-spec';

export function layersWithStaged(inputs: SpecInputs): SpecInputs {
  return (inputs.shared.staged ?? []).filter(({ rolloutId }) => inputs.marks?.has(rolloutId)).reduce(withStaged, inputs);
}

function withStaged(inputs: SpecInputs, value: StagedValue): SpecInputs {
  const { layer } = value;
  const { shared } = inputs;
  switch (layer.t) {
    case 'learner': return { ...inputs, learned: inputs.marks?.get(value.rolloutId) ?? inputs.learned };
    case 'device': return { ...inputs, devicePins: replaced(inputs.devicePins, value) };
    case 'fleet': return { ...inputs, shared: { ...shared, fleet: replaced(shared.fleet, value) } };
    case 'group': return { ...inputs, shared: { ...shared, groups: replacedGroup(shared.groups, layer, value) } };
  }
}

function replaced(pins: PinSet, { field, pin }: StagedValue): PinSet {
  return { ...pins, [field]: pin ?? undefined };
}

/** A mark is given to devices that the selector matched when the rollout began; it holds for as long as they carry it. */
function replacedGroup(groups: readonly GroupPins[], { selector }: Extract<PinPlace, { t: 'group' }>, value: StagedValue): GroupPins[] {
  const before = groups.map((group) => (group.selector === selector ? { ...group, pins: { ...group.pins, [value.field]: undefined } } : group));
  return [...before, { selector, matches: [], pins: replaced({}, value) }];
}
