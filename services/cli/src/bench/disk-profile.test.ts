import { InvalidArgumentError } from 'commander';
import { parseProfile } from './disk-profile';

test('a disk is a named device, a speed, or whatever it can do', () => {
  expect(parseProfile('emmc')).toEqual({ name: 'emmc', bytesPerSecond: 250e6 });
  expect(parseProfile('UFS2.1').bytesPerSecond).toBe(700e6);
  expect(parseProfile('ufs3.1').bytesPerSecond).toBe(1e9);
  expect(parseProfile('raw')).toEqual({ name: 'raw', bytesPerSecond: null });
  expect(parseProfile('500MB/s').bytesPerSecond).toBe(500e6);
  expect(parseProfile('1GiB/s').bytesPerSecond).toBe(2 ** 30);
});

test.each(['fast', '500MB', '/s', '0MB/s', '10kB/s', '-1MB/s', 'toString', ''])('refuses %j', (text) => {
  expect(() => parseProfile(text)).toThrow(InvalidArgumentError);
});
