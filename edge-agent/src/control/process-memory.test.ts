import { availableBytes, parseKilobytes, parsePressure, parseStall, readMemory, residentBytes, stallShare } from './process-memory';

test('reads what Linux writes', () => {
  expect(parseKilobytes('Name:\tnode\nVmRSS:\t   12345 kB\nVmHWM:\t 9 kB\n', 'VmRSS')).toBe(12345 * 1024);
  expect(parseKilobytes('MemFree: 1 kB\n', 'MemAvailable')).toBeNull();
  expect(parsePressure('some avg10=1.25 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n')).toBe(1.25);
  expect(parsePressure('')).toBeNull();
  expect(parseStall('some avg10=1.25 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n')).toBe(9);
  expect(parseStall('')).toBeNull();
});

test('knows this process and this machine, and gives 0 for a process that is not there', () => {
  expect(residentBytes(process.pid)).toBeGreaterThan(10 * 1024 ** 2);
  expect(residentBytes(2 ** 30)).toBe(0);
  expect(residentBytes(null)).toBe(0);
  expect(availableBytes()).toBeGreaterThan(0);
  const { availableBytes: free, totalBytes } = readMemory();
  expect(free).toBeLessThanOrEqual(totalBytes);
});

test('the share of stalls between two readings is the worse of the machine\'s and the group\'s', () => {
  const reading = (...stalls: (number | null)[]) => ({ availableBytes: 0, totalBytes: 0, stalls });
  expect(stallShare(reading(0, null), reading(50_000, null), 500)).toBe(10);
  expect(stallShare(reading(0, 0), reading(50_000, 100_000), 500)).toBe(20);
  expect(stallShare(reading(null, null), reading(null, null), 500)).toBeNull();
  expect(stallShare(reading(0), reading(5), 0)).toBeNull();
});
