import { FetchAllowance } from './fetch-allowance';
import { parseQuietHours, printQuietHours, quietForMs } from './quiet-hours';

const at = (hours: number, minutes: number): Date => new Date(2026, 4, 5, hours, minutes);

test.each([['22:00-06:00', 23, 30, 6.5], ['22:00-06:00', 5, 59, 1 / 60], ['22:00-06:00', 6, 0, 0], ['22:00-06:00', 21, 59, 0], ['07:30-19:00', 7, 30, 11.5], ['07:30-19:00', 19, 0, 0], ['07:30-19:00', 2, 0, 0]])('%s at %d:%d is quiet for %d hours', (text, hours, minutes, left) => {
  const span = parseQuietHours(text)!;
  expect(quietForMs(span, at(hours, minutes))).toBeCloseTo(left * 3_600_000, 3);
  expect(printQuietHours(span)).toBe(text);
});

test.each(['', '22-6', '24:00-06:00', '22:60-06:00', '06:00-06:00', '22:00 06:00', 'always'])('"%s" is no span', (text) => expect(parseQuietHours(text)).toBeNull());

test('of the limits of fleet and device the stricter holds', () => {
  const allowance = new FetchAllowance({ bytesPerSecond: 500, quietHours: { from: 60, to: 120 } }, () => 0, () => at(1, 30));
  expect([allowance.bytesPerSecond, allowance.quiet()]).toEqual([500, { ms: 30 * 60_000, reason: 'quiet hours, 01:00-02:00' }]);
  allowance.set({ bytesPerSecond: 300, quietHours: { from: 80, to: 180 } });
  expect([allowance.bytesPerSecond, allowance.quiet()?.ms]).toEqual([300, 90 * 60_000]);
  allowance.set({ bytesPerSecond: 800, quietHours: null });
  expect(allowance.bytesPerSecond).toBe(500);
});

test('the rate holds over all that is under way at once', async () => {
  const began = performance.now();
  const allowance = new FetchAllowance({ bytesPerSecond: 100_000, quietHours: null }, () => performance.now(), () => new Date());
  const { signal } = new AbortController();
  await Promise.all(Array.from({ length: 4 }, async () => {
    for (let i = 0; i < 5; i += 1) await allowance.take(2_500, signal);
  }));
  expect(performance.now() - began).toBeGreaterThan(400); // 50,000 bytes at this rate; a slow machine is slower
  await allowance.take(1_000, AbortSignal.abort()).then(() => { throw new Error('was let through'); }, (error: Error) => expect(error.name).toBe('AbortError'));
});
