/**
 * The control group's share of memory, version 1 or 2. A process may use no more than the tightest group on its way up
 * allows, so each level counts. The parsers are pure; the readers give null where a file is missing, as in a container
 * that shows only some levels.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface MemoryGroup {
  version: 1 | 2;
  /** folders of the process's own group and those above it, as far as they are mounted */
  folders: string[];
}

/** Where this process's memory group lies, from /proc/self/cgroup and /proc/self/mountinfo; null where there is none. */
export function parseMemoryGroup(cgroup: string, mountinfo: string): MemoryGroup | null {
  const lines = cgroup.split('\n').map((line) => /^\d+:([^:]*):(.*)$/.exec(line)).filter((match) => match !== null);
  const mounts = mountinfo.split('\n').map((line) => /^\d+ \d+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$/.exec(line)).filter((match) => match !== null);
  const first = lines.find((match) => match[1]!.split(',').includes('memory'));
  const unified = lines.find((match) => match[1] === '');
  const mount = first
    ? mounts.find((match) => match[3] === 'cgroup' && match[4]!.split(',').includes('memory'))
    : mounts.find((match) => match[3] === 'cgroup2');
  const path = (first ?? unified)?.[2];
  if (!mount || path === undefined) return null;
  const [root, at] = [mount[1]!, mount[2]!];
  // A path outside of what is mounted is that of the host; the mount itself is then all there is to see.
  const below = root === '/' ? path : path === root || path.startsWith(`${root}/`) ? path.slice(root.length) : '/';
  const names = below.split('/').filter((name) => name !== '');
  if (names.includes('..')) return null;
  const folders = names.map((_, i) => join(at, ...names.slice(0, names.length - i)));
  return { version: first ? 1 : 2, folders: [...folders, at] };
}

/** What a level's files say it has left: its limit without what is used, save what the kernel can drop; null without a limit. */
export function groupAvailable(limit: string, usage: string, stat: string): number | null {
  const most = Number(limit.trim());
  const used = Number(usage.trim());
  // "max" in version 2; in version 1 a number near 2^63.
  if (!(most >= 0 && most < 2 ** 62) || !Number.isFinite(used)) return null;
  const field = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(stat)?.[1] ?? NaN);
  const files = ['inactive_file', 'active_file'].map((name) => (Number.isNaN(field(`total_${name}`)) ? field(name) : field(`total_${name}`)));
  const droppable = files.reduce((sum, bytes) => sum + (Number.isNaN(bytes) ? 0 : bytes), 0);
  return Math.max(0, most - Math.max(0, used - droppable));
}

/** The tightest level: what it has left, and its limit. null where no level has a limit. */
export function readGroup(group: MemoryGroup | null): { availableBytes: number; limitBytes: number } | null {
  let tightest: { availableBytes: number; limitBytes: number } | null = null;
  for (const folder of group?.folders ?? []) {
    const [limit, usage] = group!.version === 1 ? ['memory.limit_in_bytes', 'memory.usage_in_bytes'] : ['memory.max', 'memory.current'];
    const texts = [limit, usage, 'memory.stat'].map((name) => readText(join(folder, name!)));
    if (texts[0] === null || texts[1] === null) continue;
    const availableBytes = groupAvailable(texts[0]!, texts[1]!, texts[2] ?? '');
    if (availableBytes !== null && (tightest === null || availableBytes < tightest.availableBytes)) tightest = { availableBytes, limitBytes: Number(texts[0]) };
  }
  return tightest;
}

/** The pressure file of the process's own group, of which only version 2 has one; null without. */
export function groupPressure(group: MemoryGroup | null): string | null {
  return group?.version === 2 ? readText(join(group.folders[0]!, 'memory.pressure')) : null;
}

export function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}
