/** Bundles of the agent as `npm run bundle` makes them, and an agent that runs from one. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { REPO } from './paths';

export interface BuiltBundle { file: string; version: string; arch: string; bytes: number; sha256: string; signature: string | null; keyId: string | null; }

/** The TypeScript must be compiled. `env` is added to this process's. */
export async function buildBundle(args: readonly string[], env: Record<string, string> = {}): Promise<BuiltBundle> {
  const { stdout } = await promisify(execFile)(process.execPath, [join(REPO, 'deploy', 'bundle', 'build.mjs'), '--json', ...args], { env: { ...process.env, ...env }, maxBuffer: 1 << 24 });
  return (JSON.parse(stdout) as { bundles: BuiltBundle[] }).bundles[0]!;
}

export interface BundledAgent { child: ChildProcess; httpUrl: string; log: string[]; stop(): Promise<number | null>; }

/** Starts `command` and resolves when the agent listens. Rejects with its log where it ends before. */
export async function startBundledAgent(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<BundledAgent> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env });
  const log: string[] = [];
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const httpUrl = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stderr! }).on('line', (line) => {
      log.push(line);
      const match = /"httpUrl":"([^"]+)"/.exec(line);
      if (match) resolve(match[1]!);
    });
    ended.then((code) => reject(new Error(`${command} ended with ${code} before it listened:\n${log.join('\n')}`)), reject);
  });
  return {
    child, httpUrl, log,
    stop: () => {
      child.kill('SIGTERM');
      return ended;
    },
  };
}
