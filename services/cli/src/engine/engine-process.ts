/**
 * Runs one job of the native engine in a child process: llama.cpp ends its process on some broken model files, and
 * that must not take the command, with what it has to say, along.
 */
import { fork } from 'node:child_process';
import { join } from 'node:path';
import type { Launcher } from '../bench/cgroup';
import { EXIT, Failure, UsageFailure } from '../failure';
import { type EngineJob, fileOf, type FromChild, type Outcomes, type ToChild } from './engine-job';

const STDERR_KEPT = 4000;

export interface JobListener {
  onProgress(fraction: number, what: string, bytes?: { done: number; total: number }): void;
  onText?(text: string): void;
}

/**
 * Rejects with UsageFailure for bad input, Failure for the rest. Aborting `signal` ends the child. With a `launcher` the
 * child's program is started by that command, which puts it where it belongs first.
 */
export function runEngineJob<T extends EngineJob>(job: T, listener: JobListener, signal: AbortSignal, launcher: Launcher | null = null): Promise<Outcomes[T['t']]> {
  return new Promise((resolve, reject) => {
    // From src and from dist alike.
    const child = fork(join(__dirname, '..', '..', 'dist', 'engine', 'engine-child.js'), [], {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      ...(launcher ? { execPath: launcher.command, execArgv: [...launcher.args, process.execPath] } : { execArgv: [] }),
    });
    let said = '';
    let ended: (() => void) | null = null;
    const kill = () => {
      if (child.connected) child.send({ t: 'cancel' } satisfies ToChild, () => {});
      // The engine stops at its next layer; one that does not is not waited for.
      setTimeout(() => child.kill('SIGKILL'), 2000).unref();
    };
    child.stderr!.on('data', (data: Buffer) => { said = (said + data.toString()).slice(-STDERR_KEPT); });
    child.on('message', (message: FromChild) => {
      switch (message.t) {
        case 'progress': return listener.onProgress(message.fraction, message.what, message.bytes);
        case 'text': return listener.onText?.(message.text);
        case 'outcome': ended = () => resolve(message.outcome as Outcomes[T['t']]); return;
        case 'failure': {
          const failure = message.badInput ? new UsageFailure(message.message) : new Failure(message.message);
          failure.stack = message.stack;
          ended = () => reject(failure);
        }
      }
    });
    child.once('error', (error) => reject(new Failure(`the engine's process could not be started: ${error.message}`, EXIT.failed, { cause: error })));
    child.once('close', (code, endSignal) => {
      signal.removeEventListener('abort', kill);
      if (signal.aborted) reject(new Failure('interrupted', EXIT.interrupted));
      else if (ended) ended();
      else reject(new Failure(crashText(job, code, endSignal, said)));
    });
    signal.addEventListener('abort', kill, { once: true });
    child.send({ t: 'job', job } satisfies ToChild, () => {});
    if (signal.aborted) kill();
  });
}

function crashText(job: EngineJob, code: number | null, signal: NodeJS.Signals | null, said: string): string {
  const path = fileOf(job);
  // The assertion comes before the stack that llama.cpp prints after it.
  const lines = said.split('\n').map((line) => line.trim()).filter(Boolean);
  const telling = lines.find((line) => /ASSERT|abort|terminate|what\(\)|error/i.test(line)) ?? lines.at(-1);
  const how = signal === 'SIGKILL' ? 'was killed (out of memory?)' : `ended by itself (${signal ?? `exit code ${code}`})`;
  return `${path}: the native engine ${how}${telling ? `: ${telling}` : ''}; the model file may be damaged, or of a kind that this engine does not run`;
}
