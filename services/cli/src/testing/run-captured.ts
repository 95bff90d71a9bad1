/** Runs one command in this process and keeps what it says. */
import { Writable } from 'node:stream';
import { runCli } from '../main';

export interface Captured { code: number; stdout: string; stderr: string; }

export async function runCaptured(args: readonly string[], env: Record<string, string> = {}, signal = new AbortController().signal): Promise<Captured> {
  const stdout = new Sink();
  const stderr = new Sink();
  const code = await runCli(args, { env, stdout, stderr, signal, releaseSignals: () => {} });
  return { code, stdout: stdout.text, stderr: stderr.text };
}

export class Sink extends Writable {
  text = '';
  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
}
