/** Medians of repeated runs, and how far the runs lie apart. */

export interface Spread { median: number; min: number; max: number; }

/** NaN of nothing; the mean of the middle two of an even count. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** null of nothing. */
export function spread(values: readonly number[]): Spread | null {
  return values.length === 0 ? null : { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/** Each value over its partner of the same run; runs in which either is missing are left out. */
export function pairedRatios(values: readonly (number | null)[], partners: readonly (number | null)[]): number[] {
  return values.flatMap((value, run) => {
    const partner = partners[run];
    return value === null || partner === null || partner === undefined || partner === 0 ? [] : [value / partner];
  });
}
