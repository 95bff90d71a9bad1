/**
 * Router logits at a byte each. A row is one token at one layer: float32 minimum and step, little endian, then one
 * byte per expert; a logit is minimum + step * byte. The error of a logit is at most half a step, that is 1/510 of the
 * row's range, and the rounding of float32.
 */

const HEAD_BYTES = 8;
const LEVELS = 255;

/** `logits`: rows x experts. */
export function quantise(logits: Float32Array, experts: number): Buffer {
  const rows = logits.length / experts;
  if (!Number.isInteger(rows)) throw new RangeError(`${logits.length} logits are no whole number of rows of ${experts}`);
  const data = Buffer.allocUnsafe(rows * (HEAD_BYTES + experts));
  for (let row = 0, at = 0; row < rows; row += 1, at += HEAD_BYTES + experts) {
    const from = row * experts;
    let min = Infinity;
    let max = -Infinity;
    for (let i = from; i < from + experts; i += 1) {
      const logit = logits[i]!;
      // A masked expert has minus infinity: it takes the lowest finite level instead of spoiling the row.
      if (!Number.isFinite(logit)) continue;
      if (logit < min) min = logit;
      if (logit > max) max = logit;
    }
    if (min > max) min = max = 0;
    const step = Math.fround((max - min) / LEVELS);
    data.writeFloatLE(min, at);
    data.writeFloatLE(step, at + 4);
    for (let i = 0; i < experts; i += 1) {
      const logit = logits[from + i]!;
      const level = step > 0 && logit > min ? Math.round((logit - min) / step) : 0;
      data[at + HEAD_BYTES + i] = Math.min(level, LEVELS);
    }
  }
  return data;
}

/** The inverse, up to rounding; rows x experts. */
export function dequantise(data: Buffer, experts: number): Float32Array {
  const rows = data.length / (HEAD_BYTES + experts);
  if (!Number.isInteger(rows)) throw new RangeError(`${data.length} bytes are no whole number of rows of ${experts} experts`);
  const logits = new Float32Array(rows * experts);
  for (let row = 0, at = 0; row < rows; row += 1, at += HEAD_BYTES + experts) {
    const min = data.readFloatLE(at);
    const step = data.readFloatLE(at + 4);
    for (let i = 0; i < experts; i += 1) logits[row * experts + i] = min + step * data[at + HEAD_BYTES + i]!;
  }
  return logits;
}
