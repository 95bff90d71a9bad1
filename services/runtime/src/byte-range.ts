/** The header `Range` of a request for one object (RFC 9110, section 14), for whoever serves blobs. Pure. */

/** Both ends included. */
export interface ByteRange { readonly start: number; readonly end: number }

export type AskedRange = { t: 'all' } | { t: 'part'; range: ByteRange } | { t: 'none of it' };

const ONE_RANGE = /^bytes=(?:(\d{1,15})-(\d{0,15})|-(\d{1,15}))$/;

/** What is no single range of bytes is left unheeded, as the standard allows. */
export function askedRange(header: string | undefined, size: number): AskedRange {
  const match = ONE_RANGE.exec(header ?? '');
  if (!match) return { t: 'all' };
  const [, first, last, suffix] = match;
  const start = first === undefined ? Math.max(0, size - Number(suffix)) : Number(first);
  const end = first === undefined || last === '' ? size - 1 : Math.min(Number(last), size - 1);
  // A range that runs backwards is none at all.
  if (first !== undefined && last && Number(last) < start) return { t: 'all' };
  return start > end || start >= size ? { t: 'none of it' } : { t: 'part', range: { start, end } };
}
