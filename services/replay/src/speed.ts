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

/** Of everything a device has done since it began; prefill and decode stall alike. */
export interface SpeedCounters { decodeTokens: number; decodeNs: number; stallNs: number; misses: number; prefillMisses: number; }

/** What a device's own counters say; null before it has decoded and missed. */
export function costOfCounters({ decodeTokens, decodeNs, stallNs, misses, prefillMisses }: SpeedCounters): TokenCost | null {
  if (!(decodeTokens > 0 && misses > 0 && stallNs >= 0)) return null;
  const missMs = stallNs / (misses + prefillMisses) / 1e6;
  const computeMs = decodeNs / decodeTokens / 1e6 - (misses / decodeTokens) * missMs;
  return computeMs > 0 ? { computeMs, missMs } : null;
}
