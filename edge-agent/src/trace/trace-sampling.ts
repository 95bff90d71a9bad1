/**
 * Whether a request is traced, decided once for the whole request. A caller that sent a traceparent has decided
 * already; otherwise the low 52 bits of the trace id are held against the ratio (W3C trace context level 2 wants the
 * low bits random; 52 of them are exact in a double), so that the same id is always decided alike.
 */

/** The caller's span, from a `traceparent` header. */
export interface ParentSpan {
  traceId: string;
  spanId: string;
  sampled: boolean;
}

const TRACEPARENT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** null where the header is missing or makes no sense: the request then starts a trace of its own. */
export function parseTraceparent(header: string | null): ParentSpan | null {
  const match = TRACEPARENT.exec(header?.trim() ?? '');
  if (!match) return null;
  const [, version, traceId, spanId, flags, rest] = match;
  if (version === 'ff' || (version === '00' && rest !== undefined)) return null;
  if (/^0+$/.test(traceId!) || /^0+$/.test(spanId!)) return null;
  return { traceId: traceId!, spanId: spanId!, sampled: (parseInt(flags!, 16) & 1) === 1 };
}

/** `ratio` in [0,1]; 0 samples nothing and 1 everything. */
export function isSampled(traceId: string, ratio: number, parent: ParentSpan | null): boolean {
  if (parent) return parent.sampled;
  return parseInt(traceId.slice(-13), 16) < ratio * 2 ** 52;
}
