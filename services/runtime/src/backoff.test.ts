import { backoffMs } from './backoff';

test('grows to its ceiling and never waits nothing', () => {
  const high = { baseMs: 100, maxMs: 5000, random: () => 0.999999 };
  expect(Math.round(backoffMs(0, high))).toBe(100);
  expect(Math.round(backoffMs(3, high))).toBe(800);
  expect(Math.round(backoffMs(1000, high))).toBe(5000);
  expect(backoffMs(9, { ...high, random: () => 0 })).toBe(10);
});
