/**
 * Control groups, in either version, for one process at a time: a limit on its memory, page cache included, and on how
 * fast it may read a disk. A process enters before it runs its program (`launcher`), so that nothing it does is outside.
 */
import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Limits {
  memoryBytes: number | null;
  /** `device` is MAJOR:MINOR of a whole device */
  read: { device: string; bytesPerSecond: number } | null;
}

/** What to start in place of a program so that it starts inside the groups: `command args... program programArgs...`. */
export interface Launcher { command: string; args: string[]; }

export interface Cgroup {
  launcher: Launcher;
  /** most memory charged so far, page cache included; null where the kernel does not say */
  peakBytes(): number | null;
  /** null where the kernel does not say */
  outOfMemoryKills(): number | null;
  /** Once its processes have ended. */
  remove(): void;
}

export type CgroupVersion = 'v1' | 'v2';

export interface Cgroups {
  version: CgroupVersion;
  make(name: string, limits: Limits): Cgroup;
}

const ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"';

/** `missing` says in words what stands in the way. `root` is where the kernel's cgroup file systems are mounted. */
export function findCgroups(limits: Limits, root = '/sys/fs/cgroup'): { cgroups: Cgroups } | { missing: string } {
  const wanted = [...(limits.memoryBytes === null ? [] : ['memory']), ...(limits.read ? ['io'] : [])];
  if (existsSync(join(root, 'cgroup.controllers'))) {
    const offered = readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(/\s+/);
    const lacking = wanted.filter((controller) => !offered.includes(controller));
    if (lacking.length > 0) return { missing: `${root}/cgroup.controllers does not offer ${lacking.join(' and ')}` };
    if (!writable(root)) return { missing: `${root} cannot be written; run as root` };
    return { cgroups: { version: 'v2', make: (name, made) => makeV2(root, name, made) } };
  }
  for (const controller of wanted.map((each) => (each === 'io' ? 'blkio' : each))) {
    const folder = join(root, controller);
    if (!existsSync(folder)) return { missing: `there is no ${controller} controller at ${folder}` };
    if (!writable(folder)) return { missing: `${folder} cannot be written; run as root` };
  }
  return { cgroups: { version: 'v1', make: (name, made) => makeV1(root, name, made) } };
}

function makeV1(root: string, name: string, { memoryBytes, read }: Limits): Cgroup {
  const memory = join(root, 'memory', name);
  const blkio = join(root, 'blkio', name);
  const folders = [...(memoryBytes === null ? [] : [memory]), ...(read ? [blkio] : [])];
  for (const folder of folders) mkdirSync(folder);
  if (memoryBytes !== null) {
    writeFileSync(join(memory, 'memory.limit_in_bytes'), String(memoryBytes));
    // Where there is swap; elsewhere the file is there and refuses, or is not there.
    try {
      if (existsSync(join(memory, 'memory.memsw.limit_in_bytes'))) writeFileSync(join(memory, 'memory.memsw.limit_in_bytes'), String(memoryBytes));
    } catch { /* no swap accounting */ }
  }
  if (read) writeFileSync(join(blkio, 'blkio.throttle.read_bps_device'), `${read.device} ${read.bytesPerSecond}`);
  return {
    launcher: launcherInto(folders),
    peakBytes: () => (memoryBytes === null ? null : readNumber(join(memory, 'memory.max_usage_in_bytes'))),
    outOfMemoryKills: () => (memoryBytes === null ? null : readKey(join(memory, 'memory.oom_control'), 'oom_kill')),
    remove: () => folders.forEach(removeFolder),
  };
}

function makeV2(root: string, name: string, { memoryBytes, read }: Limits): Cgroup {
  const controllers = [...(memoryBytes === null ? [] : ['+memory']), ...(read ? ['+io'] : [])];
  if (controllers.length > 0) writeFileSync(join(root, 'cgroup.subtree_control'), controllers.join(' '));
  const folder = join(root, name);
  mkdirSync(folder);
  if (memoryBytes !== null) {
    writeFileSync(join(folder, 'memory.max'), String(memoryBytes));
    if (existsSync(join(folder, 'memory.swap.max'))) writeFileSync(join(folder, 'memory.swap.max'), '0');
  }
  if (read) writeFileSync(join(folder, 'io.max'), `${read.device} rbps=${read.bytesPerSecond}`);
  return {
    launcher: launcherInto([folder]),
    peakBytes: () => (memoryBytes === null ? null : readNumber(join(folder, 'memory.peak'))),
    outOfMemoryKills: () => (memoryBytes === null ? null : readKey(join(folder, 'memory.events'), 'oom_kill')),
    remove: () => removeFolder(folder),
  };
}

function launcherInto(folders: readonly string[]): Launcher {
  return { command: '/bin/sh', args: ['-c', ENTER, 'sh', ...folders.map((folder) => join(folder, 'cgroup.procs')), '--'] };
}

function writable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

function readNumber(file: string): number | null {
  if (!existsSync(file)) return null;
  const value = Number(readFileSync(file, 'utf8'));
  return Number.isFinite(value) ? value : null;
}

function readKey(file: string, key: string): number | null {
  if (!existsSync(file)) return null;
  const line = readFileSync(file, 'utf8').split('\n').find((each) => each.startsWith(`${key} `));
  return line ? Number(line.slice(key.length)) : null;
}

/** A group that a dying process still holds goes with the next boot; it limits nothing any more. */
function removeFolder(folder: string): void {
  try {
    rmdirSync(folder);
  } catch { /* still busy */ }
}
