/** The whole device that holds a file, as the block-I/O controller names it: `MAJOR:MINOR`. Partitions are not throttled. */
import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** null where no block device is under the file: a network file system, an overlay, memory. */
export function deviceOf(path: string, sysRoot = '/sys'): string | null {
  const { dev } = statSync(path, { bigint: true });
  return wholeDevice(deviceNumber(dev), sysRoot);
}

/** Linux's encoding of st_dev. */
export function deviceNumber(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  return `${major}:${minor & 0xffffffffn}`;
}

export function wholeDevice(number: string, sysRoot: string): string | null {
  const link = join(sysRoot, 'dev', 'block', number);
  if (!existsSync(link)) return null;
  const folder = realpathSync(link);
  const whole = existsSync(join(folder, 'partition')) ? dirname(folder) : folder;
  return readFileSync(join(whole, 'dev'), 'utf8').trim();
}
