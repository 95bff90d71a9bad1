/**
 * How far `max_rank` bends, as one figure like λ: 0 where residents of the model's own top-K alone are preferred, which
 * is its own choice, and 1 where those of any rank are.
 */
export interface Ranks { readonly topK: number; readonly experts: number }

export function maxRankAt(strength: number, { topK, experts }: Ranks): number {
  return topK + Math.round(strength * (experts - topK));
}

export function strengthOfMaxRank(maxRank: number, { topK, experts }: Ranks): number {
  return experts > topK ? Math.min(Math.max(maxRank - topK, 0) / (experts - topK), 1) : 0;
}
