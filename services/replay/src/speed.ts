/**
 * Tokens/s that misses leave: a token takes the arithmetic of one with everything resident, and each of its misses stalls
 * it by one cost. It knows nothing of reads that overlap, which the cost per miss, taken from a device, has in it already.
 */
export interface TokenCost {
  /** of one token with every expert in memory */
  computeMs: number;
  /** by which one miss holds the token up */
  missMs: number;
}

export function tokensPerSecond({ computeMs, missMs }: TokenCost, missesPerToken: number): number {
  return 1000 / (computeMs + missesPerToken * missMs);
}

/** What a device's own counters say, over all it has decoded; null before it has decoded and missed. */
export function costOfCounters({ decodeTokens, decodeNs, stallNs, misses }: { decodeTokens: number; decodeNs: number; stallNs: number; misses: number }): TokenCost | null {
  if (!(decodeTokens > 0 && misses > 0 && decodeNs > stallNs && stallNs >= 0)) return null;
  return { computeMs: (decodeNs - stallNs) / decodeTokens / 1e6, missMs: stallNs / misses / 1e6 };
}
