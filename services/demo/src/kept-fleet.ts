/** Remembers what `--keep` left running, so that it can be stopped from another shell and never doubles. */
import { existsSync, mkdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

interface KeptFleet { folder: string; pids: number[]; }

function recordPath(): string {
  const state = process.env['XDG_STATE_HOME'] ?? join(homedir(), '.local', 'state');
  return join(state, 'moefleet', 'demo.json');
}

export function rememberFleet(fleet: KeptFleet): void {
  mkdirSync(dirname(recordPath()), { recursive: true });
  writeFileSync(recordPath(), JSON.stringify(fleet));
}

/** Exit code: 0 when nothing of it runs any more. `quiet` says nothing where there was nothing to stop. */
export async function stopKeptFleet(quiet = false): Promise<number> {
  if (!existsSync(recordPath())) {
    if (!quiet) process.stderr.write('no demo is running\n');
    return 0;
  }
  const fleet = JSON.parse(readFileSync(recordPath(), 'utf8')) as KeptFleet;
  // A pid may have been given to another process since.
  const alive = (): number[] => fleet.pids.filter((pid) => isOurs(pid, fleet.folder));
  const found = alive().length;
  // The programs first, Redis and Jaeger when those are gone.
  for (const pid of alive().filter((one) => /moefleet\.js/.test(commandLine(one)))) process.kill(pid, 'SIGTERM');
  await until(() => alive().every((pid) => !/moefleet\.js/.test(commandLine(pid))), 15_000);
  for (const pid of alive()) process.kill(pid, 'SIGTERM');
  await until(() => alive().length === 0, 10_000);
  for (const pid of alive()) process.kill(pid, 'SIGKILL');
  rmSync(fleet.folder, { recursive: true, force: true });
  rmSync(recordPath(), { force: true });
  process.stderr.write(`stopped ${found} processes of an earlier demo\n`);
  return 0;
}

async function until(check: () => boolean, timeoutMs: number): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!check() && Date.now() < deadline) await sleep(100);
}

function isOurs(pid: number, folder: string): boolean {
  // Programs and Jaeger carry the folder in their arguments or the command line's path; Redis works inside it.
  const line = commandLine(pid);
  return line.includes('moefleet.js') || line.includes(folder) || workingFolder(pid).startsWith(folder);
}

function workingFolder(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
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
