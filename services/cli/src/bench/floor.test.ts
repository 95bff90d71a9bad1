import { floorOf, pacingOf } from './floor';

test('the floor adds reading to arithmetic, and names the larger of the two', () => {
  // 70 MB at 700 MB/s are 100 ms.
  expect(floorOf(180, 50, 70e6, 700e6)).toEqual({ computeMs: 50, readMs: 100, sumMs: 150, largerMs: 100, overSum: 1.2, overLarger: 1.8 });
  expect(floorOf(60, 50, 0, 700e6)).toMatchObject({ readMs: 0, sumMs: 50, overSum: 1.2 });
});

test('a rhythm has the bytes of a layer, at least one expert, and as much arithmetic between as belongs to them', () => {
  expect(pacingOf(60e6, 5e6, 6, 30)).toEqual({ burstBytes: 10e6, pauseNs: 5e6 });
  // One expert for every second token: the pause is that of two tokens.
  expect(pacingOf(2.5e6, 5e6, 6, 30)).toEqual({ burstBytes: 5e6, pauseNs: 60e6 });
});
