/** How fast the disk of a bench may be: a named kind of device, a figure, or whatever the disk can do. */
import { parseSize } from '@moefleet/runtime';
import { InvalidArgumentError } from 'commander';

export interface DiskProfile {
  name: string;
  /** null: not throttled */
  bytesPerSecond: number | null;
}

/** Sequential read speeds of the kinds of flash that boards and phones carry, in the round figures they are sold by. */
const NAMED: Readonly<Record<string, number | null>> = { emmc: 250e6, 'ufs2.1': 700e6, 'ufs3.1': 1000e6, raw: null };

export function parseProfile(text: string): DiskProfile {
  const name = text.trim().toLowerCase();
  if (Object.hasOwn(NAMED, name)) return { name, bytesPerSecond: NAMED[name]! };
  const match = /^(.+)\/s$/.exec(name);
  let bytesPerSecond = NaN;
  if (match) {
    try {
      bytesPerSecond = parseSize(match[1]!);
    } catch { /* said below */ }
  }
  if (!(bytesPerSecond >= 1e6)) {
    throw new InvalidArgumentError(`Write ${Object.keys(NAMED).join(', ')} or a speed of at least 1MB/s, such as 500MB/s.`);
  }
  return { name, bytesPerSecond };
}
