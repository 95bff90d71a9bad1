/**
 * What a device misses, told from what a text misses at the same setting. A text is read in one piece; a device answers prompt
 * after prompt, and each answer begins with a cache that holds what the one before wanted. So a share of its tokens comes while
 * the cache is strange to them, and these miss as the square root of what the text's do: the less a setting misses, the more of
 * its misses are theirs. A device that misses less than the text has a factor below 1 instead, the same at every setting.
 *
 * Measured on the reference model, four answers of 16 tokens, room for 8, 10, 14 and 22 of 32 experts: at λ 0 they miss 51, 45, 33
 * and 15% of slots where code and WikiText miss 42, 34, 23 and 9. The share that this makes foretells what they miss at λ 0.1 to
 * 0.15 to within a tenth (35, 30, 17, 5.5%); taken for a ratio it foretells a tenth to two fifths too few.
 */
export interface OwnMisses {
  /** of its tokens, in [0,1] */
  readonly strangeShare: number;
  /** in (0,1] */
  readonly factor: number;
}

export const AS_THE_TEXT: OwnMisses = { strangeShare: 0, factor: 1 };

const LEAST_FACTOR = 0.25;

/** From misses seen, what the text says there would be, and the sum of the square roots of what it says of each slot; `weight` in [0,1]: how far what was seen counts. */
export function ownMisses(seen: number, said: number, roots: number, weight = 1): OwnMisses {
  if (!(said > 0) || !(roots > said)) return AS_THE_TEXT;
  if (seen < said) return { strangeShare: 0, factor: Math.max(1 + weight * (seen / said - 1), LEAST_FACTOR) };
  return { strangeShare: Math.min((weight * (seen - said)) / (roots - said), 1), factor: 1 };
}

/** `rate`: of the text, misses per slot. */
export function ownMissRate(rate: number, { strangeShare, factor }: OwnMisses): number {
  return factor * (rate + strangeShare * (Math.sqrt(rate) - rate));
}
