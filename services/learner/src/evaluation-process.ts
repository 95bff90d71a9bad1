/**
 * The engine in a process of its own: it computes for minutes, which would starve the worker's lock renewal, and
 * llama.cpp ends its process on some broken models, which must fail a job and not the learner.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import type { EvaluationSource, FromChild, ToChild } from './evaluation-protocol';
import { type Evaluation, EvaluationInputError, type EvaluationPoint, type EvaluationSubject, type Evaluator } from './evaluator';

const STDERR_KEPT = 4000;
/** The engine stops at its next layer; a process that has not by then is ended. */
const CANCEL_PATIENCE_MS = 5000;

interface Waiting {
  settle(message: FromChild): void;
  fail(error: Error): void;
}

export class EvaluationProcess implements Evaluator {
  subject!: EvaluationSubject;
  private said = '';
  private waiting: Waiting | null = null;
  private readonly ended: Promise<void>;

  private constructor(private readonly child: ChildProcess, private readonly source: EvaluationSource) {
    child.stderr!.on('data', (data: Buffer) => { this.said = (this.said + data.toString()).slice(-STDERR_KEPT); });
    child.on('message', (message: FromChild) => this.waiting?.settle(message));
    this.ended = new Promise((resolve) => {
      child.once('error', (error) => { this.waiting?.fail(error); resolve(); });
      child.once('close', (code, signal) => { this.waiting?.fail(this.crash(code, signal)); resolve(); });
    });
  }

  /** Loads model and text. Rejects with EvaluationInputError where they cannot be learned from. */
  static async open(source: EvaluationSource, signal: AbortSignal): Promise<EvaluationProcess> {
    // From src and from dist alike.
    const child = fork(join(__dirname, '..', 'dist', 'evaluation-child.js'), [], {
      serialization: 'advanced', stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [],
    });
    const process = new EvaluationProcess(child, source);
    try {
      const answer = await process.ask({ t: 'open', source }, () => {}, signal);
      if (answer.t !== 'opened') throw new Error(`the evaluation process answered ${answer.t} to open`);
      process.subject = answer.subject;
      return process;
    } catch (error) {
      await process.close();
      throw error;
    }
  }

  async evaluate(point: EvaluationPoint, domain: number, onProgress: (fraction: number) => void, signal: AbortSignal): Promise<Evaluation> {
    const answer = await this.ask({ t: 'evaluate', point, domain }, onProgress, signal);
    if (answer.t !== 'evaluated') throw new Error(`the evaluation process answered ${answer.t} to evaluate`);
    return answer.evaluation;
  }

  async close(): Promise<void> {
    // It holds nothing but memory, so it need not be asked.
    this.child.kill('SIGKILL');
    await this.ended;
  }

  private ask(message: ToChild, onProgress: (fraction: number) => void, signal: AbortSignal): Promise<FromChild> {
    return new Promise<FromChild>((resolve, reject) => {
      if (signal.aborted) return reject(abortReason(signal));
      let patience: NodeJS.Timeout | undefined;
      const cancel = () => {
        this.send({ t: 'cancel' });
        patience = setTimeout(() => this.child.kill('SIGKILL'), CANCEL_PATIENCE_MS);
      };
      const done = () => {
        this.waiting = null;
        clearTimeout(patience);
        signal.removeEventListener('abort', cancel);
      };
      this.waiting = {
        settle: (answer) => {
          if (answer.t === 'progress') return onProgress(answer.fraction);
          done();
          if (signal.aborted) reject(abortReason(signal));
          else if (answer.t === 'failed') reject(answer.badInput ? new EvaluationInputError(answer.message) : new Error(answer.message));
          else resolve(answer);
        },
        fail: (error) => {
          done();
          reject(signal.aborted ? abortReason(signal) : error);
        },
      };
      signal.addEventListener('abort', cancel, { once: true });
      if (this.child.exitCode !== null || this.child.signalCode !== null) return this.waiting.fail(this.crash(this.child.exitCode, this.child.signalCode));
      this.send(message);
    });
  }

  private send(message: ToChild): void {
    if (this.child.connected) this.child.send(message, () => {});
  }

  private crash(code: number | null, signal: NodeJS.Signals | null): Error {
    const lines = this.said.split('\n').map((line) => line.trim()).filter(Boolean);
    const telling = lines.find((line) => /ASSERT|abort|terminate|what\(\)|error/i.test(line)) ?? lines.at(-1);
    const text = `${this.source.modelPath}: the engine's process ended (${signal ?? `exit code ${code}`})${telling ? `: ${telling}` : ''}`;
    // The kernel's memory killer is no fault of the model.
    return signal === 'SIGKILL' ? new Error(`${text}; free some memory`) : new EvaluationInputError(`${text}; the model file may be damaged, or of a kind that this engine does not run`);
  }
}

function abortReason(signal: AbortSignal): Error {
  return signal.reason instanceof Error ? signal.reason : new Error('cancelled');
}
