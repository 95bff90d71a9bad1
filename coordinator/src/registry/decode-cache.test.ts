import { DecodeCache } from './decode-cache';

test('decodes equal bytes once, a failure each time, and forgets what is too much', () => {
  let decoded = 0;
  const cache = new DecodeCache((bytes) => {
    decoded += 1;
    if (bytes.length === 0) throw new TypeError('nothing');
    return { text: bytes.toString() };
  }, 2, 8);
  expect(cache.decode(Buffer.from('a'))).toBe(cache.decode(Buffer.from('a')));
  expect(decoded).toBe(1);
  expect(() => cache.decode(Buffer.alloc(0))).toThrow('nothing');
  expect(() => cache.decode(Buffer.alloc(0))).toThrow('nothing');
  expect(decoded).toBe(3);
  for (const text of ['b', 'c', 'a']) expect(cache.decode(Buffer.from(text))).toEqual({ text });
  expect(decoded).toBe(6);
  expect(cache.decode(Buffer.from('longer than 8'))).not.toBe(cache.decode(Buffer.from('longer than 8')));
});
