/** Runs `moefleet …` the way an operator would, and reads what `--json` prints. */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { CLI_PATH } from './local-fleet';

/** A command that failed: its exit code and what it said. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  constructor(args: readonly string[], readonly exitCode: number | null, readonly said: string) {
    super(`moefleet ${args.join(' ')}: exit ${exitCode}: ${said.trim()}`);
  }
}

export interface CommandOptions {
  operator: string;
  /** lines the command writes to standard error while it works */
  onProgress?: (line: string) => void;
  signal?: AbortSignal;
}

/** Parsed standard output of the command with `--json`. */
export async function moefleet<T>(args: readonly string[], options: CommandOptions): Promise<T> {
  const child = spawn(process.execPath, [CLI_PATH, ...args, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, MOEFLEET_OPERATOR: options.operator },
    signal: options.signal,
  });
  let output = '';
  let said = '';
  child.stdout.on('data', (data: Buffer) => { output += data.toString(); });
  createInterface({ input: child.stderr }).on('line', (line) => {
    said = `${said}${line}\n`.slice(-4000);
    options.onProgress?.(line);
  });
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (exitCode !== 0) throw new CommandError(args, exitCode, said || output);
  return JSON.parse(output) as T;
}
