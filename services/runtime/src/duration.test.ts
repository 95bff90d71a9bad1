import { formatDuration, parseDuration } from './duration';

test.each([['90s', 90_000], ['2h', 7_200_000], ['1h30m', 5_400_000], ['1.5h', 5_400_000], ['7d', 604_800_000], [' 250ms ', 250]])('%j is %d ms', (text, ms) => {
  expect(parseDuration(text)).toBe(ms);
});

test.each(['', '5', '0s', '-1h', '1 h', '1y', 'h', '1h,30m', '9e99d', '99999999999999999w'])('%j is refused and named', (text) => {
  expect(() => parseDuration(text)).toThrow(`not a span of time: "${text}"`);
});

test('is shown by its two largest units', () => {
  expect([5_400_000, 999, 61_000, 90_061_000, 0].map(formatDuration)).toEqual(['1h 30m', '999ms', '1m 1s', '1d 1h', '0ms']);
});
