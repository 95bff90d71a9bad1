/** Remembers what `--keep` left running, so that it can be stopped from another shell and never doubles. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

interface KeptProcess {
  pid: number;
  /** Since boot, as /proc tells it: a pid may be given to another process, but not with the same start. */
  startTicks: string;
}
interface KeptFleet { folder: string; processes: KeptProcess[]; }

function recordPath(): string {
  const state = process.env['XDG_STATE_HOME'] ?? join(homedir(), '.local', 'state');
  return join(state, 'moefleet', 'demo.json');
}

/** Called at each start, so that whatever ends the demo, `--stop` finds what runs. */
export function rememberFleet(folder: string, pids: readonly number[]): void {
  const fleet: KeptFleet = { folder, processes: pids.map((pid) => ({ pid, startTicks: startTicks(pid) })) };
  mkdirSync(dirname(recordPath()), { recursive: true });
  const partial = `${recordPath()}.${process.pid}`;
  writeFileSync(partial, JSON.stringify(fleet));
  renameSync(partial, recordPath());
}

/** Nothing of it runs any more. */
export function forgetFleet(): void {
  rmSync(recordPath(), { force: true });
}

/** Exit code: 0 when nothing of it runs any more. `quiet` says nothing where there was nothing to stop. */
export async function stopKeptFleet(quiet = false): Promise<number> {
  if (!existsSync(recordPath())) {
    if (!quiet) process.stderr.write('no demo is running\n');
    return 0;
  }
  const fleet = readRecord();
  if (!fleet) {
    process.stderr.write(`${recordPath()}: cannot be read and is removed; if an earlier demo still runs, find it with: pgrep -af moefleet-demo\n`);
    forgetFleet();
    return 1;
  }
  const alive = (): number[] => fleet.processes.filter(({ pid, startTicks: begun }) => begun !== '' && startTicks(pid) === begun).map(({ pid }) => pid);
  const found = alive().length;
  // The programs first, Redis and Jaeger when those are gone.
  for (const pid of alive().filter((one) => /moefleet\.js/.test(commandLine(one)))) process.kill(pid, 'SIGTERM');
  await until(() => alive().every((pid) => !/moefleet\.js/.test(commandLine(pid))), 15_000);
  for (const pid of alive()) process.kill(pid, 'SIGTERM');
  await until(() => alive().length === 0, 10_000);
  for (const pid of alive()) process.kill(pid, 'SIGKILL');
  rmSync(fleet.folder, { recursive: true, force: true });
  forgetFleet();
  process.stderr.write(`stopped ${found} processes of an earlier demo\n`);
  return 0;
}

async function until(check: () => boolean, timeoutMs: number): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!check() && Date.now() < deadline) await sleep(100);
}

/** null for a record that was not written by this program. */
function readRecord(): KeptFleet | null {
  try {
    const { folder, processes } = JSON.parse(readFileSync(recordPath(), 'utf8')) as Partial<KeptFleet>;
    return typeof folder === 'string' && Array.isArray(processes) ? { folder, processes } : null;
  } catch {
    return null;
  }
}

/** Empty for a process that is not there, or that is dead and waits for its parent. */
function startTicks(pid: number): string {
  try {
    // The command's name, in parentheses, may itself hold spaces and parentheses.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ');
    return fields[0] === 'Z' ? '' : fields[19]!;
  } catch {
    return '';
  }
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replace(/\0/g, ' ');
  } catch {
    return '';
  }
}
