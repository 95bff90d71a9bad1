/**
 * A device that the registry has fallen behind: it reports a higher generation than the registry holds, so Redis was
 * emptied or restored from an older dump, and the layers found there are not those its spec was made of. Such a device
 * keeps what it runs, whatever the layers say now, until an operator accepts them; the kill switch alone goes past
 * that. A pure function of what both sides say, so that it needs nothing kept in the Redis that lost data.
 */
import type { Reported } from '@moefleet/proto';
import { type DesiredRecord, generationOf, highestReported } from '../registry/device-record';

export interface HeldInputs {
  readonly desired: DesiredRecord;
  readonly reported: Reported | undefined;
}

/** `hash` (hex) is that of the spec the layers make now, `killed` whether the kill switch is on. */
export function isHeld({ desired, reported }: HeldInputs, hash: string, killed: boolean): boolean {
  if (killed || !reported || reported.appliedHash.length === 0) return false;
  return highestReported(reported) > generationOf(desired) && reported.appliedHash.toString('hex') !== hash;
}

export const HELD_TEXT = 'the registry has lost what this device runs (Redis was emptied or restored); it keeps its spec until: moefleet fleet accept-restore';
