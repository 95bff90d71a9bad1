/** Runs `moefleet_bench`, the native program beside the engine: the stock library, the bare disk, the page cache. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { benchToolPath } from '@moefleet/edge-agent/engine';
import { EXIT, Failure } from '../failure';
import type { Launcher } from './cgroup';

const STDERR_KEPT = 2000;

/** The process was killed by the kernel, as one that goes over its memory limit is. */
export class ToolKilledFailure extends Failure {}

/** What it printed. `launcher` null: outside any control group. */
export function runTool(args: readonly string[], launcher: Launcher | null, signal: AbortSignal): Promise<string> {
  const tool = benchToolPath();
  if (!existsSync(tool)) throw new Failure(`${tool} has not been built; run: npm run build:native`);
  const [command, ...rest] = launcher ? [launcher.command, ...launcher.args, tool, ...args] : [tool, ...args];
  return new Promise((resolve, reject) => {
    const child = spawn(command!, rest, { stdio: ['ignore', 'pipe', 'pipe'], signal, killSignal: 'SIGKILL' });
    let out = '';
    let said = '';
    child.stdout.on('data', (data: Buffer) => { out += data.toString(); });
    child.stderr.on('data', (data: Buffer) => { said = (said + data.toString()).slice(-STDERR_KEPT); });
    child.once('error', (error) => reject(signal.aborted ? new Failure('interrupted', EXIT.interrupted) : new Failure(`${tool}: ${error.message}`)));
    child.once('close', (code, endSignal) => {
      if (signal.aborted) reject(new Failure('interrupted', EXIT.interrupted));
      else if (code === 0) resolve(out);
      else if (endSignal === 'SIGKILL') reject(new ToolKilledFailure(`moefleet_bench ${args[0]} was killed (out of memory?)`));
      else reject(new Failure(`moefleet_bench ${args[0]}: ${said.trim() || `ended by ${endSignal ?? `exit code ${code}`}`}`));
    });
  });
}
