/**
 * A memory control group of a test's own, version 1 or 2 as the machine has it, beside which nothing else runs. Making
 * one takes root; where that is not to be had, `memoryGroupOrSkip` says so loudly and gives null.
 */
import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseMemoryGroup } from '../../edge-agent/src/control/cgroup-memory';
import { until } from './ports';

export class TestMemoryGroup {
  private constructor(readonly folder: string, private readonly version: 1 | 2) {}

  /** Throws where the system will not have it. */
  static make(name: string, limitBytes: number): TestMemoryGroup {
    const own = parseMemoryGroup(readFileSync('/proc/self/cgroup', 'utf8'), readFileSync('/proc/self/mountinfo', 'utf8'));
    if (!own) throw new Error('no memory controller is mounted');
    // Version 2 allows no processes beside child groups, save in the root.
    const folder = join(own.version === 1 ? own.folders[0]! : own.folders.at(-1)!, `${name}-${process.pid}`);
    mkdirSync(folder);
    const group = new TestMemoryGroup(folder, own.version);
    try {
      group.setLimit(limitBytes);
    } catch (error) {
      rmdirSync(folder);
      throw error;
    }
    return group;
  }

  /** `command` as a process of the group from its first instruction on. */
  wrap(command: string, args: string[]): { command: string; args: string[] } {
    return { command: 'sh', args: ['-c', 'echo $$ > "$0/cgroup.procs" && exec "$@"', this.folder, command, ...args] };
  }

  setLimit(bytes: number): void {
    writeFileSync(join(this.folder, this.version === 1 ? 'memory.limit_in_bytes' : 'memory.max'), String(bytes));
  }

  /** Without what the kernel could drop. */
  usedBytes(): number {
    const stat = this.read('memory.stat');
    const field = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(stat)?.[1] ?? 0);
    return Number(this.read(this.version === 1 ? 'memory.usage_in_bytes' : 'memory.current')) - field('inactive_file') - field('active_file');
  }

  /** Processes the kernel has killed for want of memory. */
  oomKills(): number {
    return Number(/^oom_kill (\d+)$/m.exec(this.read(this.version === 1 ? 'memory.oom_control' : 'memory.events'))?.[1] ?? NaN);
  }

  /** Once its processes have ended. */
  async remove(): Promise<void> {
    await until('the group is empty', () => this.read('cgroup.procs').trim() === '');
    await until('the group is gone', () => {
      rmdirSync(this.folder);
      return true;
    });
  }

  private read(file: string): string {
    return readFileSync(join(this.folder, file), 'utf8');
  }
}

export function memoryGroupOrSkip(name: string, limitBytes: number): TestMemoryGroup | null {
  try {
    return TestMemoryGroup.make(name, limitBytes);
  } catch (error) {
    process.stderr.write(`\nNO MEMORY GROUP CAN BE MADE (${(error as Error).message}): what needs one is SKIPPED; run as root\n`);
    return null;
  }
}
