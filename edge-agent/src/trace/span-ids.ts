/**
 * Ids that are functions of what a span stands for, so that a batch sent twice, or written again after a restart,
 * makes no second span. A flash read is the (boot id, host start, miss number) it came from; every other span of a
 * request is named by the request id and its place in it.
 */
import { createHash } from 'node:crypto';

const ALL_ZERO = /^0+$/;

/** 16 hex digits: the first 8 bytes of SHA-256(boot id, start number of the engine host, miss number). */
export function missSpanId(bootId: string, hostStart: number, missNumber: number): string {
  return digest(`${bootId}\n${hostStart}\n${missNumber}`, 16);
}

/** 16 hex digits for a span of request `requestId`, `place` being unique within the request. */
export function requestSpanId(requestId: string, place: string): string {
  return digest(`${requestId}\n${place}`, 16);
}

/** 32 hex digits for part `part` (0, 1, ...) of the request's trace. */
export function traceIdOf(requestId: string, part: number): string {
  return digest(`${requestId}\ntrace\n${part}`, 32);
}

/** W3C trace context forbids ids of zeros only. */
function digest(text: string, digits: number): string {
  const id = createHash('sha256').update(text).digest('hex').slice(0, digits);
  return ALL_ZERO.test(id) ? `${id.slice(1)}1` : id;
}
