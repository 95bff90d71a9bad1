/**
 * Which experts tokens use, per layer, as histograms; and how far two of them are apart: the Jensen-Shannon
 * divergence in bits, in [0,1] (Lin 1991). Two histograms of one and the same use differ by chance, by about
 * (E-1)/(8 ln 2) (1/n + 1/m) bits of n and m independent samples; that much is taken off. The K uses of a token come together,
 * so that n counts tokens: stretches of one text that keeps to its subject differ by 0.6 to 1.2 times that much on the
 * reference model.
 */
export interface UseHistogram {
  /** of each MoE layer, per expert: aged counts */
  readonly layers: readonly (readonly number[])[];
  /** behind them, aged likewise */
  readonly tokens: number;
}

export const NO_USE: UseHistogram = { layers: [], tokens: 0 };

/** Bits, in [0,1]; 0 where either is empty. */
export function jensenShannon(a: readonly number[], b: readonly number[]): number {
  const [sumA, sumB] = [total(a), total(b)];
  if (sumA <= 0 || sumB <= 0) return 0;
  let bits = 0;
  for (let i = 0; i < Math.max(a.length, b.length); i += 1) {
    const p = (a[i] ?? 0) / sumA;
    const q = (b[i] ?? 0) / sumB;
    const middle = (p + q) / 2;
    if (p > 0) bits += (p * Math.log2(p / middle)) / 2;
    if (q > 0) bits += (q * Math.log2(q / middle)) / 2;
  }
  return Math.min(Math.max(bits, 0), 1);
}

/** Per layer, beyond what chance makes of so few tokens; empty where the shapes differ or nothing was used. */
export function divergences(a: UseHistogram, b: UseHistogram): number[] {
  if (a.layers.length !== b.layers.length || a.tokens <= 0 || b.tokens <= 0) return [];
  return a.layers.map((layer, i) => Math.max(0, jensenShannon(layer, b.layers[i]!) - byChance(layer.length, a.tokens, b.tokens)));
}

function byChance(experts: number, tokensA: number, tokensB: number): number {
  return ((experts - 1) / (8 * Math.LN2)) * (1 / tokensA + 1 / tokensB);
}

function total(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0);
}
