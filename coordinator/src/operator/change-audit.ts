/** How changes of what devices run are told in the audit log. */
import type { Proposal } from '@moefleet/proto';
import { inChunks } from '../registry/chunks';
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

/** What the learner would have other than before; null where it repeats itself, as it does at every tick. */
export async function proposalEntry(registry: Registry, who: string, proposals: readonly Proposal[]): Promise<AuditInput | null> {
  const pairs = await inChunks(proposals.filter((proposal) => proposal.proposed), async (proposal) => {
    const learned = (await registry.devices.read(proposal.deviceId))?.learned;
    const before = learned?.modelHash === proposal.modelHash ? valuesOf(learned) : undefined;
    return { id: proposal.deviceId, before, after: valuesOf(proposal), why: proposal.reason };
  });
  const changed = pairs.filter(({ before, after }) => JSON.stringify(before) !== JSON.stringify(after));
  if (changed.length === 0) return null;
  return {
    who, what: `learner's values on ${changed.length === 1 ? `device ${changed[0]!.id}` : `${changed.length} devices`}`, why: changed[0]!.why,
    subject: { t: 'devices', ids: changed.map(({ id }) => id) },
    before: Object.fromEntries(changed.map(({ id, before }) => [id, before ?? null])), after: Object.fromEntries(changed.map(({ id, after }) => [id, after])),
  };
}

function valuesOf({ lambda, topJ, capacities }: Proposal) {
  return { lambda, topJ, capacities };
}

async function standingPin(registry: Registry, target: Target, field: PinField): Promise<PinByField[PinField] | undefined> {
  const place = pinPlace(target);
  if (place.t === 'device') return (await registry.devices.read(place.deviceId))?.pins[field];
  const { fleet, groups } = await registry.pins.shared();
  return place.t === 'fleet' ? fleet[field] : groups.find((group) => group.selector === place.selector)?.pins[field];
}
