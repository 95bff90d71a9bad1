/** When to dial the coordinator again, and what the operator must do where dialling alone will not help. */
import { status } from '@grpc/grpc-js';

/** For refusals that a person has to lift: often enough to notice soon, seldom enough to bother nobody. */
const REFUSED_WAIT_MS = 30_000;
const MAX_ASKED_MS = 5 * 60_000;

export interface Retry {
  waitMs: number;
  /** null where waiting is all there is to do */
  nextStep: string | null;
}

const NEXT_STEPS: Partial<Record<status, string>> = {
  [status.ALREADY_EXISTS]: 'another installation holds this device id; give this agent an id of its own with --id, or stop the other one',
  [status.INVALID_ARGUMENT]: 'agent and coordinator do not understand each other; check the device id, and that both are of one release',
  [status.FAILED_PRECONDITION]: 'the coordinator cannot take this agent as it is; do what the reason says, and check that both are of one release',
  [status.UNIMPLEMENTED]: 'there is no agent gateway at this address; check --coordinator',
  [status.UNAUTHENTICATED]: 'this agent has no certificate that counts; enrol it with --enrol-token (moefleet token create)',
  [status.PERMISSION_DENIED]: 'an operator has to let this agent in; the reason says how',
};

/**
 * `askedMs`: the coordinator's retry-after-ms, null where it sent none. `jitteredMs`: what backoff alone would wait.
 * The wait the coordinator asked for is a minimum, stretched by up to a fifth so that agents do not come as one.
 */
export function planRetry(code: status, askedMs: number | null, jitteredMs: number, random: () => number): Retry {
  const nextStep = NEXT_STEPS[code] ?? null;
  const minimum = askedMs !== null && askedMs > 0 && Number.isFinite(askedMs) ? Math.min(askedMs, MAX_ASKED_MS) : nextStep ? REFUSED_WAIT_MS : 0;
  return { waitMs: Math.max(minimum * (1 + random() / 5), jitteredMs), nextStep };
}
