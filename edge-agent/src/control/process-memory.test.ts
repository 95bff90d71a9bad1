import { availableBytes, parseKilobytes, parsePressure, residentBytes } from './process-memory';

test('reads what Linux writes', () => {
  expect(parseKilobytes('Name:\tnode\nVmRSS:\t   12345 kB\nVmHWM:\t 9 kB\n', 'VmRSS')).toBe(12345 * 1024);
  expect(parseKilobytes('MemFree: 1 kB\n', 'MemAvailable')).toBeNull();
  expect(parsePressure('some avg10=1.25 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n')).toBe(1.25);
  expect(parsePressure('')).toBeNull();
});

test('knows this process and this machine, and gives 0 for a process that is not there', () => {
  expect(residentBytes(process.pid)).toBeGreaterThan(10 * 1024 ** 2);
  expect(residentBytes(2 ** 30)).toBe(0);
  expect(residentBytes(null)).toBe(0);
  expect(availableBytes()).toBeGreaterThan(0);
});
