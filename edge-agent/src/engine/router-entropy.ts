/**
 * How undecided routers are: the mean over tokens of the entropy of the router's softmax, in bits, per layer. `scores` holds
 * tokens x layers x experts; what is not finite is masked. A router that becomes undecided is on text that it was not trained
 * on. Empty for no token.
 */
export function routerEntropy(scores: Float32Array, layers: number, experts: number): number[] {
  const tokens = Math.floor(scores.length / (layers * experts));
  const sums = new Array<number>(layers).fill(0);
  for (let row = 0; row < tokens * layers; row += 1) sums[row % layers]! += entropyOf(scores.subarray(row * experts, (row + 1) * experts));
  return tokens === 0 ? [] : sums.map((sum) => sum / tokens);
}

/** ln of the softmax's sum, less the mean score above the top: nats, and bits at the end. */
function entropyOf(row: Float32Array): number {
  let top = -Infinity;
  for (const value of row) if (Number.isFinite(value) && value > top) top = value;
  let mass = 0;
  let weighted = 0;
  for (const value of row) {
    const e = Number.isFinite(value) ? Math.exp(value - top) : 0;
    mass += e;
    if (e > 0) weighted += e * (value - top);
  }
  return mass > 0 ? (Math.log(mass) - weighted / mass) / Math.LN2 : 0;
}
