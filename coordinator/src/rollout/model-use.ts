/** Who needs a model of the store: devices that are asked to run it, and values of operators that would ask for it. */
import type { ModelRecord } from '../artifacts/model-store';
import type { ModelPin, PinSet } from '../registry/pin';
import type { Registry } from '../registry/registry';

/** For people; null: nobody. */
export async function modelUser({ devices, pins, stagedRollouts }: Pick<Registry, 'devices' | 'pins' | 'stagedRollouts'>, { manifestSha256 }: Pick<ModelRecord, 'manifestSha256'>): Promise<string | null> {
  const needs = (pin: ModelPin | undefined) => pin?.manifestSha256 === manifestSha256;
  const pinned = ({ model }: PinSet) => needs(model);
  const { fleet, groups } = await pins.shared();
  if (pinned(fleet)) return 'it is set for the fleet';
  const group = groups.find((one) => pinned(one.pins));
  if (group) return `it is set for devices with ${group.selector}`;
  // A rollout under way may yet bring it, or go back to it.
  for (const id of await stagedRollouts.active()) {
    const rollout = await stagedRollouts.read(id);
    if (rollout?.field === 'model' && (needs(rollout.pin as ModelPin | undefined) || needs(rollout.previousPin as ModelPin | undefined))) return `rollout ${id} is under way`;
  }
  for (const device of await devices.readAll()) {
    if (pinned(device.pins)) return `it is set for device ${device.id}`;
    if (device.desired.t === 'set' && device.desired.decoded.model?.manifestSha256 === manifestSha256) return `device ${device.id} is asked to run it`;
  }
  return null;
}
