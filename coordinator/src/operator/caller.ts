/** Who makes a call: found by `operator-auth.ts`, read by the handlers. */
import type { Metadata } from '@grpc/grpc-js';

export interface Caller {
  /** what the audit log says */
  readonly name: string;
}

export const LOCAL_CALLER: Caller = { name: 'local (no authentication)' };

/** Beside the metadata, so that no client can send one. */
const callers = new WeakMap<Metadata, Caller>();

export function setCaller(metadata: Metadata, caller: Caller): void {
  callers.set(metadata, caller);
}

export function callerOf(metadata: Metadata): Caller {
  return callers.get(metadata) ?? LOCAL_CALLER;
}
