/**
 * The agent's folder of state: who holds it, who it is, and whole files. One agent at a time: the lock names the
 * process and when it began, so that the lock of an agent that was killed is known for stale even where its number
 * has been given to another process.
 */
import { randomUUID } from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { Service } from '@moefleet/runtime';
import { replaceFile, writeSynced } from '../whole-file';

/** Another agent holds the folder. */
export class StateFolderBusyError extends Error {
  override readonly name = 'StateFolderBusyError';
  constructor(folder: string, holder: string) {
    super(`${folder}: another agent (process ${holder}) runs with this state folder; stop it, or give this one its own with --state-dir and --id`);
  }
}

export class StateFolder implements Service {
  readonly name = 'state folder';
  private held: string | null = null;

  constructor(readonly path: string) {}

  /** Makes the folder and takes the lock. Rejects with StateFolderBusyError, or the file system's error. */
  async start(): Promise<void> {
    mkdirSync(this.path, { recursive: true, mode: 0o700 });
    this.takeLock();
  }

  async stop(): Promise<void> {
    if (this.held !== null && this.read('lock') === this.held) rmSync(join(this.path, 'lock'), { force: true });
    this.held = null;
  }

  /** Made once per installation. */
  installId(): string {
    const kept = this.read('install-id')?.trim();
    if (kept && /^[0-9a-f-]{36}$/.test(kept)) return kept;
    const made = randomUUID();
    this.write('install-id', `${made}\n`);
    return made;
  }

  /** null where there is no such file. */
  read(name: string): string | null {
    try {
      return readFileSync(join(this.path, name), 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw error;
    }
  }

  /** Replaces the file as a whole, on the disk when it returns. */
  write(name: string, text: string): void {
    replaceFile(join(this.path, name), text);
  }

  private takeLock(): void {
    const mine = `${process.pid} ${processStart(process.pid) ?? 'unknown'}\n`;
    const lock = join(this.path, 'lock');
    const temporary = join(this.path, `lock.${process.pid}`);
    writeSynced(temporary, mine);
    try {
      for (let attempt = 0; attempt < 5 && this.held === null; attempt += 1) {
        if (tryLink(temporary, lock)) this.held = mine;
        else this.removeIfStale(lock);
      }
    } finally {
      unlinkSync(temporary);
    }
    if (this.held === null) throw new StateFolderBusyError(this.path, 'unknown');
  }

  private removeIfStale(lock: string): void {
    const seen = this.read('lock');
    if (seen === null) return;
    const [pid, began] = seen.trim().split(' ');
    if (pid && began && processStart(Number(pid)) === began) throw new StateFolderBusyError(this.path, pid);
    // Between the look and the rename another agent may have put its own lock there: then it goes back.
    const aside = `${lock}.stale.${process.pid}`;
    try {
      renameSync(lock, aside);
    } catch {
      return;
    }
    if (readFileSync(aside, 'utf8') !== seen) tryLink(aside, lock);
    rmSync(aside, { force: true });
  }
}

function tryLink(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/** When a process began, in ticks since the machine did; null where there is no such process. */
function processStart(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // Fields are counted after the name, which may hold spaces: the start time is the 20th from there.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}
