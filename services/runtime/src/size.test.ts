import { formatSize, parseSize } from './size';

test.each([['4096', 4096], ['8MiB', 8 * 1024 ** 2], ['1.5 GiB', 1.5 * 1024 ** 3], ['512k', 512 * 1024], ['1kB', 1000]])(
  'reads %s as %d bytes', (text, bytes) => expect(parseSize(text)).toBe(bytes),
);

test.each(['', 'MiB', '-1', '1e400', '8 parsecs', 'NaN'])('refuses "%s" and names it', (text) => {
  expect(() => parseSize(text)).toThrow(`"${text}"`);
});

test('writes what a person reads', () => {
  expect(formatSize(0)).toBe('0 B');
  expect(formatSize(15 * 1024 ** 2)).toBe('15.0 MiB');
});
