/** Who makes a call, as far as it is known. */
import type { Metadata } from '@grpc/grpc-js';

export interface Caller {
  /** what the audit log says */
  readonly name: string;
}

const LOCAL: Caller = { name: 'local (no authentication)' };

export function callerOf(_metadata: Metadata): Caller {
  return LOCAL;
}
