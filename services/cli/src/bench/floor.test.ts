import { floorOf, rhythmOf } from './floor';

test('the floor adds reading to arithmetic, and names the larger of the two', () => {
  // 70 MB at 700 MB/s are 100 ms.
  expect(floorOf(180, 50, 70e6, 700e6)).toEqual({ computeMs: 50, readMs: 100, sumMs: 150, largerMs: 100, overSum: 1.2, overLarger: 1.8 });
  expect(floorOf(60, 50, 0, 700e6)).toMatchObject({ readMs: 0, sumMs: 50, overSum: 1.2 });
});

test('a rhythm has the misses of each token, and a share of the arithmetic for each layer', () => {
  const tokens = [4, 0, 7].map((misses, i) => ({ startNs: i, endNs: i + 1, nll: 1, engine: { slots: 24, misses, flashBytes: misses * 5e6, stallNs: 0 } }));
  expect(rhythmOf(tokens, 6, 30)).toEqual({ misses: [4, 0, 7], pauseNs: 5e6 });
});
