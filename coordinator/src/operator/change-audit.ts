/** How changes of what devices run are told in the audit log. */
import type { AuditInput } from '../registry/audit-store';
import type { PinByField, PinField } from '../registry/pin';
import type { Registry } from '../registry/registry';
import { auditSubject, type Change, describeChange, pinField, pinPlace, type Target } from '../rollout/change';

/** The entry for a pin that is about to be set or cleared, with the one that stands now. */
export async function pinEntry(registry: Registry, who: string, target: Target, change: Change, why: string): Promise<AuditInput> {
  const after: Partial<Change> = { ...change };
  delete after.t;
  return {
    who, what: describeChange(change, target), why, subject: auditSubject(target),
    before: await standingPin(registry, target, pinField(change)),
    after: Object.keys(after).length > 0 ? after : undefined,
  };
}

async function standingPin(registry: Registry, target: Target, field: PinField): Promise<PinByField[PinField] | undefined> {
  const place = pinPlace(target);
  if (place.t === 'device') return (await registry.devices.read(place.deviceId))?.pins[field];
  const { fleet, groups } = await registry.pins.shared();
  return place.t === 'fleet' ? fleet[field] : groups.find((group) => group.selector === place.selector)?.pins[field];
}
