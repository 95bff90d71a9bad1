import { deflateSync } from 'node:zlib';
import { Compression, RouterEncoding, RouterWindow } from '@moefleet/proto';
import { dequantise, packScores, quantise, unpackWindow, WindowFormatError, zstdContentSize } from './router-window';

/** Deterministic numbers in [0,1). */
function numbers(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 1_103_515_245 + 12_345) % 2 ** 31) / 2 ** 31;
}

function scoresOf(rows: number, experts: number, scale = 1): Float32Array {
  const random = numbers(experts);
  const scores = new Float32Array(rows * experts);
  for (let i = 0; i < scores.length; i += 1) scores[i] = (random() - 0.5) * 20 * scale;
  return scores;
}

async function windowOf(scores: Float32Array, experts: number, exact = false): Promise<RouterWindow> {
  return RouterWindow.fromPartial({ windowId: 'w', tokens: scores.length / experts / 2, layers: 2, experts, ...await packScores(scores, experts, exact) });
}

test.each([[32, 1], [8, 1e-6], [128, 1e6]])('a score comes back within half a step: %d experts, scale %d', (experts, scale) => {
  const scores = scoresOf(50, experts, scale);
  const back = dequantise(quantise(scores, experts), experts);
  for (let row = 0; row < 50; row += 1) {
    const z = scores.subarray(row * experts, (row + 1) * experts);
    const range = Math.max(...z) - Math.min(...z);
    const off = z.filter((score, i) => Math.abs(back[row * experts + i]! - score) > range / 508 + range * 1e-5 + Math.abs(score) * 1e-6);
    expect([...off]).toEqual([]);
  }
});

test('a flat row does no harm, and a masked expert stays masked', () => {
  expect([...dequantise(quantise(Float32Array.of(3, 3, 3), 3), 3)]).toEqual([3, 3, 3]);
  const [masked, low, high] = dequantise(quantise(Float32Array.of(-Infinity, -1, 1), 3), 3);
  expect([masked, low]).toEqual([-Infinity, -1]);
  expect(high).toBeCloseTo(1, 5);
  expect([...dequantise(quantise(Float32Array.of(NaN, -Infinity), 2), 2)]).toEqual([-Infinity, -Infinity]);
});

test('refuses what is no whole number of rows', () => {
  expect(() => quantise(new Float32Array(7), 3)).toThrow(/7.*3/);
  expect(() => dequantise(Buffer.alloc(12), 3)).toThrow(/12.*3/);
});

test('a window comes back as it was packed, at a byte a score or exactly', async () => {
  const scores = scoresOf(40, 32);
  const packed = await unpackWindow(await windowOf(scores, 32));
  expect(packed).toMatchObject({ rowsMask: true, scores: null });
  expect(Buffer.from(packed.rows!)).toEqual(quantise(scores, 32));
  const exact = await unpackWindow(await windowOf(scores, 32, true));
  expect(exact.rows).toBeNull();
  expect(exact.scores).toEqual(scores);
});

test('reads what earlier agents deflated', async () => {
  const scores = scoresOf(40, 32);
  const window = RouterWindow.fromPartial({ windowId: 'w', tokens: 20, layers: 2, experts: 32, compression: Compression.COMPRESSION_DEFLATE, data: deflateSync(quantise(scores, 32)) });
  expect(await unpackWindow(window)).toMatchObject({ rowsMask: false });
});

test('takes megabytes', async () => {
  const scores = scoresOf(2 * 512, 512);
  const window = await windowOf(scores, 512);
  expect((await unpackWindow(window)).rows).toHaveLength(2 * 512 * 520);
});

test('a frame that claims another size is refused before it is unpacked', async () => {
  const good = await windowOf(scoresOf(40, 32), 32);
  expect(zstdContentSize(good.data)).toBe(40 * 40);
  for (const [change, says] of [
    [{ tokens: 21 }, /frame says 1600 where 1680 bytes are due/], [{ tokens: 0 }, /0 tokens/], [{ experts: 4_000_000_000 }, /at most/],
    [{ data: good.data.subarray(0, 300) }, /damaged/], [{ data: Buffer.alloc(3) }, /frame says nothing/], [{ data: Buffer.from('no frame at all') }, /frame says nothing/],
    [{ compression: 9 as Compression }, /compression 9/], [{ encoding: 9 as RouterEncoding }, /encoding 9/], [{ compression: Compression.COMPRESSION_NONE }, /bytes where 1600 are due/],
    [{ compression: Compression.COMPRESSION_DEFLATE, data: deflateSync(Buffer.alloc(1 << 20)) }, /damaged/],
  ] as const) {
    const bad = unpackWindow({ ...good, ...change });
    await expect(bad).rejects.toThrow(WindowFormatError);
    await expect(bad).rejects.toThrow(says);
  }
});

test('no change to a byte does more than spoil the window', async () => {
  const good = await windowOf(scoresOf(40, 32), 32);
  const random = numbers(7);
  for (let i = 0; i < 500; i += 1) {
    const data = Buffer.from(good.data);
    for (let n = 0; n < 3; n += 1) data[Math.floor(random() * data.length)] = Math.floor(random() * 256);
    const outcome = await unpackWindow({ ...good, data }).then(({ rows }) => rows!.length, (error: Error) => error.name);
    expect([1600, 'WindowFormatError']).toContain(outcome);
  }
  expect((await unpackWindow(good)).rows).toHaveLength(1600);
});
