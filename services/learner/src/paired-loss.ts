/**
 * What λ costs, as the mean over windows of the difference to λ 0 on the same tokens, and that mean's standard error.
 * Windows differ in difficulty far more than λ changes any of them, so pairing cuts the error by an order of magnitude.
 */
export interface PairedLoss {
  /** nats per token */
  mean: number;
  /** standard error of `mean`, nats per token */
  stderr: number;
}

/** Mean nats per token of each window, at λ and at λ 0; at least two windows. Throws RangeError otherwise. */
export function pairedLoss(windows: ArrayLike<number>, baseline: ArrayLike<number>): PairedLoss {
  const count = windows.length;
  if (count < 2 || baseline.length !== count) {
    throw new RangeError(`a paired loss needs two windows or more on both sides, found ${count} and ${baseline.length}`);
  }
  let sum = 0;
  for (let i = 0; i < count; i += 1) sum += windows[i]! - baseline[i]!;
  const mean = sum / count;
  let squares = 0;
  for (let i = 0; i < count; i += 1) squares += (windows[i]! - baseline[i]! - mean) ** 2;
  return { mean, stderr: Math.sqrt(squares / (count - 1) / count) };
}
