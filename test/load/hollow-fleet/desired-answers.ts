/**
 * What agents answer to a spec: APPLYING, then APPLIED with the hash of the bytes received. Agents that ran the same and are
 * sent the same answer the same, and make it once: each of them true, and their processor time not the generator's.
 */
import { ConnectRequest, DeviceSpec, type DeviceLimits, Reported, Routing, SpecState } from '@moefleet/proto';
import { createHash } from 'node:crypto';

export interface DesiredAnswer {
  /** messages as they are sent */
  applying: Uint8Array;
  applied: Uint8Array;
  /** what it reports from then on; agents may share it */
  reported: Reported;
  decoded: DeviceSpec;
}

/** Before it was ever sent a spec. */
export const NOTHING_REPORTED: Reported = Reported.fromPartial({});

/** A fleet is sent few at a time. */
const MOST_KNOWN = 64;

export class DesiredAnswers {
  private known = new Map<string, WeakMap<Reported, DesiredAnswer>>();

  /** `before`: what the agent reported until now. */
  of(before: Reported, generation: bigint, spec: Buffer, limits: DeviceLimits | undefined): DesiredAnswer {
    const key = `${generation} ${spec.toString('latin1')}`;
    let answers = this.known.get(key);
    if (!answers) {
      if (this.known.size >= MOST_KNOWN) this.known.clear();
      this.known.set(key, answers = new WeakMap());
    }
    let answer = answers.get(before);
    if (!answer) answers.set(before, answer = answerTo(before, generation, spec, limits));
    return answer;
  }
}

function answerTo(before: Reported, generation: bigint, spec: Buffer, limits: DeviceLimits | undefined): DesiredAnswer {
  const decoded = DeviceSpec.decode(spec);
  const reported = Reported.fromPartial({
    state: SpecState.SPEC_STATE_APPLIED, generation, appliedGeneration: generation, appliedHash: createHash('sha256').update(spec).digest(),
    effective: {
      lambda: decoded.lambda ?? 0, topJ: decoded.topJ ?? 2, routing: decoded.routing || Routing.ROUTING_CACHE_PRIOR, traceRatio: decoded.traceRatio ?? 1,
      capacities: limits?.maxCapacities ?? [], cacheBytes: limits?.maxCacheBytes ?? 0n,
    },
  });
  const applying = said({ ...before, state: SpecState.SPEC_STATE_APPLYING, generation, reason: '' });
  return { applying, applied: said(reported), reported, decoded };
}

function said(value: Reported): Uint8Array {
  return ConnectRequest.encode({ body: { $case: 'reported', value } }).finish();
}
