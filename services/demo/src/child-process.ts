/**
 * One long-running program of a fleet on this machine: its output goes to a log file, it stands in a process group of
 * its own (so that Ctrl-C reaches only its owner, who stops things in order), and it dies with its owner unless it is
 * meant to be kept.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

export interface ChildOptions {
  name: string;
  command: string;
  args: string[];
  env?: Record<string, string | undefined>;
  logPath: string;
  /** true: survives its owner */
  keep: boolean;
}

/** A program ended before it was ready; the message carries the last lines of its log. */
export class ChildEndedError extends Error {
  override readonly name = 'ChildEndedError';
}

const diesWithParent = spawnSync('setpriv', ['--pdeathsig', 'TERM', 'true']).status === 0;

export class Child {
  private constructor(readonly name: string, private readonly child: ChildProcess, private readonly logPath: string) {}

  static start(options: ChildOptions): Child {
    const log = openSync(options.logPath, 'a');
    const wrap = !options.keep && diesWithParent;
    const [command, args] = wrap
      ? ['setpriv', ['--pdeathsig', 'TERM', options.command, ...options.args]] as const
      : [options.command, options.args] as const;
    const child = spawn(command, args, {
      stdio: ['ignore', log, log],
      detached: true,
      env: { ...process.env, ...options.env },
    });
    closeSync(log);
    child.once('error', () => {});
    if (options.keep) child.unref();
    return new Child(options.name, child, options.logPath);
  }

  get pid(): number | undefined {
    return this.child.pid;
  }

  get ended(): boolean {
    return this.child.pid === undefined || this.child.exitCode !== null || this.child.signalCode !== null;
  }

  /** What the program has written so far. */
  log(): string {
    return readFileSync(this.logPath, 'utf8');
  }

  /** The JSON log line whose message is `message`, as soon as it is there. */
  async logLine(message: string, timeoutMs = 30_000): Promise<Record<string, unknown>> {
    return this.until(`"${message}" in its log`, () => {
      for (const line of this.log().split('\n')) {
        if (!line.includes(message)) continue;
        try {
          const entry = JSON.parse(line) as Record<string, unknown>;
          if (entry['msg'] === message) return entry;
        } catch {
          // a line that is still being written
        }
      }
      return null;
    }, timeoutMs);
  }

  /** Polls `check` until it gives something; throws ChildEndedError when the program ends first or time is up. */
  async until<T>(what: string, check: () => Promise<T | null> | T | null, timeoutMs: number): Promise<T> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const value = await check();
      if (value !== null) return value;
      this.throwIfEnded(what);
      if (Date.now() > deadline) throw this.failure(`gave no sign within ${timeoutMs / 1000} s`, what);
      await sleep(50);
    }
  }

  /** Throws ChildEndedError where nothing can be waited for any more. */
  throwIfEnded(what: string): void {
    if (this.ended) throw this.failure('ended', what);
  }

  private failure(how: string, what: string): ChildEndedError {
    const tail = this.log().trimEnd().split('\n').slice(-8).join('\n');
    return new ChildEndedError(`${this.name} ${how} while waiting for ${what}; its last lines (${this.logPath}):\n${tail}`);
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Asks it to end, insists after `patienceMs`. Safe to call twice. */
  async stop(patienceMs = 12_000): Promise<void> {
    if (this.ended) return;
    const ended = new Promise<void>((resolve) => this.child.once('exit', () => resolve()));
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), patienceMs);
    await ended;
    clearTimeout(timer);
  }
}
