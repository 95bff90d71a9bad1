/**
 * Whether a device must be sent its desired spec: a pure function of what it shall run, what it says, and what is on
 * its way to it. Level-based, so it may be asked at any time.
 */
import { type Reported, SpecState } from '@moefleet/proto';
import { type DesiredRecord, speaksOf } from '../registry/device-record';

/** As much of a DesiredRecord as the decision takes. */
export type KnownDesired = Exclude<DesiredRecord, { t: 'set' }> | Pick<Extract<DesiredRecord, { t: 'set' }>, 't' | 'generation' | 'hash'>;

/** The last Desired written to this stream. */
export interface SentDesired { generation: bigint; /** hex */ hash: string; sentMs: number }

export type DesiredDecision =
  /** it runs what it shall, and nothing else is on its way */
  | { t: 'settled'; generation: bigint }
  | { t: 'send' }
  /** it is busy with it, or has refused it: nothing to do until something changes */
  | { t: 'wait' }
  /** it did not keep what it had acknowledged; send again, but not in a tight loop */
  | { t: 'later'; inMs: number };

/** A device that says APPLIED and yet runs something else is not asked more often than this. */
export const RESEND_AFTER_MS = 5000;

export function decideDesired(desired: KnownDesired, reported: Reported | undefined, sent: SentDesired | null, nowMs: number): DesiredDecision {
  const inFlight = sent !== null && !answered(sent, reported);
  if (desired.t !== 'set') return inFlight || desired.t === 'damaged' ? { t: 'wait' } : { t: 'settled', generation: 0n };
  // The registry has lost what the device runs: nothing older is ever sent.
  if (reported && (reported.generation > desired.generation || reported.appliedGeneration > desired.generation)) return { t: 'wait' };
  const state = reported?.state ?? SpecState.SPEC_STATE_UNSPECIFIED;
  const speaksOfIt = speaksOf(reported, desired.generation, desired.hash);
  if (speaksOfIt && (state === SpecState.SPEC_STATE_APPLYING || state === SpecState.SPEC_STATE_FAILED)) return { t: 'wait' };
  if (inFlight) return sent.hash === desired.hash ? { t: 'wait' } : { t: 'send' };
  const runsIt = reported?.appliedHash.toString('hex') === desired.hash;
  if (runsIt && state !== SpecState.SPEC_STATE_APPLYING) return { t: 'settled', generation: desired.generation };
  const waitMs = sent?.generation === desired.generation ? sent.sentMs + RESEND_AFTER_MS - nowMs : 0;
  return waitMs > 0 ? { t: 'later', inMs: waitMs } : { t: 'send' };
}

function answered(sent: SentDesired, reported: Reported | undefined): boolean {
  return reported !== undefined && reported.generation >= sent.generation && reported.state !== SpecState.SPEC_STATE_APPLYING;
}
