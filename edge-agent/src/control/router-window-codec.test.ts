import { dequantise, quantise } from './router-window-codec';

/** Deterministic numbers in [0,1). */
function numbers(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31;
}

test.each([[32, 1], [8, 1e-6], [128, 1e6]])('a logit comes back within half a step: %d experts, scale %d', (experts, scale) => {
  const random = numbers(experts);
  const logits = Float32Array.from({ length: 50 * experts }, () => (random() - 0.5) * 20 * scale);
  const back = dequantise(quantise(logits, experts), experts);
  for (let row = 0; row < 50; row += 1) {
    const z = logits.subarray(row * experts, (row + 1) * experts);
    const range = Math.max(...z) - Math.min(...z);
    z.forEach((logit, i) => expect(Math.abs(back[row * experts + i]! - logit)).toBeLessThanOrEqual(range / 510 + range * 1e-5 + Math.abs(logit) * 1e-6));
  }
});

test('a flat row and a masked expert do no harm', () => {
  expect([...dequantise(quantise(Float32Array.of(3, 3, 3), 3), 3)]).toEqual([3, 3, 3]);
  const [masked, low, high] = dequantise(quantise(Float32Array.of(-Infinity, -1, 1), 3), 3);
  expect([masked, low]).toEqual([-1, -1]);
  expect(high).toBeCloseTo(1, 5);
  expect([...dequantise(quantise(Float32Array.of(NaN, -Infinity), 2), 2)]).toEqual([0, 0]);
});

test('refuses what is no whole number of rows', () => {
  expect(() => quantise(new Float32Array(7), 3)).toThrow(/7.*3/);
  expect(() => dequantise(Buffer.alloc(12), 3)).toThrow(/12.*3/);
});
