import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deviceNumber, wholeDevice } from './block-device';

let sys: string;
beforeEach(() => { sys = mkdtempSync(join(tmpdir(), 'moefleet-sys-')); });
afterEach(() => rmSync(sys, { recursive: true }));

test('decodes device numbers as Linux packs them', () => {
  expect(deviceNumber(0xfe00n)).toBe('254:0');
  // makedev(259, 300): the minor's high bits lie above the major's twelve.
  expect(deviceNumber(0x11032cn)).toBe('259:300');
});

test('a partition stands for the device it is on', () => {
  const disk = join(sys, 'devices', 'sda');
  mkdirSync(join(disk, 'sda2'), { recursive: true });
  mkdirSync(join(sys, 'dev', 'block'), { recursive: true });
  writeFileSync(join(disk, 'dev'), '8:0\n');
  writeFileSync(join(disk, 'sda2', 'dev'), '8:2\n');
  writeFileSync(join(disk, 'sda2', 'partition'), '2\n');
  symlinkSync(disk, join(sys, 'dev', 'block', '8:0'));
  symlinkSync(join(disk, 'sda2'), join(sys, 'dev', 'block', '8:2'));
  expect(wholeDevice('8:2', sys)).toBe('8:0');
  expect(wholeDevice('8:0', sys)).toBe('8:0');
  expect(wholeDevice('0:45', sys)).toBeNull();
});
