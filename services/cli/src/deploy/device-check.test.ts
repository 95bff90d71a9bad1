import { checkDevice, older } from './device-check';
import { parseFacts } from './device-facts';
import { factsText } from './testing/facts-text';

const NOTHING = { prefixBytes: 0, stateBytes: 0 };
const look = (change: Record<string, string | null>, need = NOTHING) => checkDevice(parseFacts(factsText(change)), need, 1_000_000);

test('a board in good order has nothing held against it', () => {
  expect(look({})).toEqual([]);
});

test.each([
  ['an architecture without a bundle', { arch: 'armv7l' }, 'stop', /architecture.*armv7l/],
  ['another system', { os: 'Darwin' }, 'stop', /system.*Darwin/],
  ['musl', { glibc: '' }, 'stop', /C library.*musl/],
  ['an old glibc', { glibc: '2.31' }, 'stop', /glibc 2\.31, needed is 2\.34/],
  ['no libstdc++', { glibcxx: '' }, 'stop', /libstdc\+\+ is missing/],
  ['an old libstdc++', { glibcxx: '3.4.28' }, 'stop', /GLIBCXX_3\.4\.28, needed is GLIBCXX_3\.4\.30/],
  ['an old kernel', { kernel: '4.9.337-tegra' }, 'stop', /kernel.*4\.9\.337/],
  ['no tar', { tool_tar: 'no' }, 'stop', /tar is missing/],
  ['little memory', { memory_bytes: '268435456' }, 'stop', /memory.*256/],
  ['systemd without its notifier', { systemd_notify: 'no' }, 'stop', /systemd-notify/],
  ['a clock an hour behind', { clock_ms: '-1' }, 'slow', /clock/],
  ['no direct reads', { direct_io: 'no' }, 'slow', /O_DIRECT/],
  ['an SD card', { flash_bytes_per_second: '22000000' }, 'slow', /22 MB\/s/],
  ['no pressure figures', { pressure: 'no' }, 'note', /PSI/],
  ['no memory control group', { cgroup_memory: 'no' }, 'note', /no effect/],
  ['no systemd', { systemd: '' }, 'note', /launcher/],
] as const)('%s is told with its remedy', (_name, change, severity, message) => {
  const findings = name(change);
  expect(findings).toHaveLength(1);
  expect(findings[0]).toMatchObject({ severity });
  expect(`${findings[0]!.check}: ${findings[0]!.found}`).toMatch(message);
  expect(findings[0]!.remedy).not.toBe('');
});

function name(change: Record<string, string>) {
  return checkDevice(parseFacts(factsText(change)), NOTHING, 'clock_ms' in change ? 3_600_000 : 1_000_000);
}

test('what goes on one disk is summed, on two disks each is looked at', () => {
  const need = { prefixBytes: 200 * 2 ** 20, stateBytes: 300 * 2 ** 20 };
  const free = { prefix_free_bytes: String(400 * 2 ** 20), state_free_bytes: String(400 * 2 ** 20) };
  expect(look(free, need)).toMatchObject([{ severity: 'stop', check: 'disk', found: expect.stringContaining('has 400.0 MiB free, needed are 564.0 MiB'), remedy: expect.stringContaining('free 164.0 MiB') }]);
  expect(look({ ...free, prefix_disk: '/opt' }, need)).toEqual([]);
  expect(look({ ...free, prefix_disk: '/opt', prefix_free_bytes: '1000' }, need)).toMatchObject([{ found: expect.stringContaining('/opt (for /opt/moefleet)') }]);
  expect(look({ prefix_free_bytes: '0', state_free_bytes: '0' })).toEqual([]);
});

test('a bundle says what it requires', () => {
  expect(checkDevice(parseFacts(factsText()), NOTHING, 1_000_000, { glibc: '2.38', glibcxx: '3.4.30' })).toMatchObject([{ found: 'glibc 2.35, needed is 2.38' }]);
});

test('a device is not believed: half an answer, a folder that would become part of a script, numbers that are none', () => {
  expect(() => parseFacts(factsText({ complete: null }))).toThrow(/did not tell what it is/);
  expect(() => parseFacts(factsText({ prefix: '/opt/$(reboot)' }))).toThrow(/names "\/opt\/\$\(reboot\)" as its folder/);
  expect(() => parseFacts(factsText({ state: '/var\' \'x' }))).toThrow(/as its folder/);
  expect(parseFacts(factsText({ memory_bytes: '1e99', installed_bundle: '../../etc', glibc: 'no' }))).toMatchObject({ memoryBytes: 0, glibc: null, installed: { bundleSha256: '' } });
});

test('versions are compared by their numbers', () => {
  expect(older('2.9', '2.34')).toBe(true);
  expect(older('2.34', '2.34')).toBe(false);
  expect(older('6.1.0-rpi7', '4.18')).toBe(false);
});
