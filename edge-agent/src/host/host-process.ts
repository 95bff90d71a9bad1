/**
 * One life of the engine host: forks the child, matches answers to requests, streams steps, and tells once how it
 * ended. Every request that is open when it ends fails with the reason. Nothing is started again here.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { HostUnavailableError } from '../engine-host';
import type { Step } from '../native';
import { describeEnd, LastLines, type ProcessEnd } from './crash-report';
import { type CallName, type HostCalls, type HostReply, type HostRequest, RemoteEngineError } from './host-protocol';

/** A child that has not closed its model by then is killed. */
export const STOP_GRACE_MS = 3_000;

export interface HostProcessOptions {
  /** path of the compiled host-main */
  hostPath: string;
  env: NodeJS.ProcessEnv;
  onStderr: (text: string) => void;
  /** `wanted`: it was told to end */
  onEnd: (end: ProcessEnd, wanted: boolean) => void;
}

interface OpenCall {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onStep?: (step: Step) => void;
  onProgress?: (done: number, total: number) => void;
}

export interface CallOptions { signal?: AbortSignal; onStep?: (step: Step) => void; onProgress?: (done: number, total: number) => void; }

export class HostProcess {
  private readonly child: ChildProcess;
  private readonly calls = new Map<number, OpenCall>();
  private readonly stderr = new LastLines();
  private nextId = 1;
  private wanted = false;
  private end: ProcessEnd | null = null;
  private readonly ended: Promise<void>;

  constructor(private readonly options: HostProcessOptions) {
    this.child = fork(options.hostPath, [], {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      execArgv: [],
      // llama.cpp would otherwise start a debugger to print a backtrace when it aborts.
      env: { ...options.env, GGML_NO_BACKTRACE: '1' },
    });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr.push(text);
      options.onStderr(text);
    });
    this.child.on('message', (message) => this.receive(message as HostReply));
    this.ended = new Promise((resolve) => {
      // `close` comes after the last of standard error; a failed fork has only `error`.
      this.child.once('close', (exitCode, signal) => {
        this.finish({ exitCode, signal, lastLines: this.stderr.all() });
        resolve();
      });
      this.child.on('error', (error) => {
        if (this.child.pid !== undefined) return;
        this.finish({ exitCode: null, signal: null, lastLines: [`it could not be started: ${error.message}`] });
        resolve();
      });
    });
  }

  get pid(): number | null {
    return this.end ? null : this.child.pid ?? null;
  }

  /** Rejects with RemoteEngineError, or HostUnavailableError where the process ends first. */
  call<C extends CallName>(name: C, args: HostCalls[C]['args'], options: CallOptions = {}): Promise<HostCalls[C]['result']> {
    const { signal } = options;
    if (this.end) return Promise.reject(new HostUnavailableError(describeEnd(this.end), true));
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = this.nextId;
    this.nextId += 1;
    const cancel = () => this.send({ t: 'cancel', id });
    signal?.addEventListener('abort', cancel, { once: true });
    return new Promise<HostCalls[C]['result']>((resolve, reject) => {
      this.calls.set(id, { resolve: resolve as (value: unknown) => void, reject, onStep: options.onStep, onProgress: options.onProgress });
      this.send({ t: name, id, ...args } as unknown as HostRequest);
    }).finally(() => signal?.removeEventListener('abort', cancel));
  }

  /** Asks it to close its model and end; kills it after a grace. Returns when the process is gone. */
  async stop(): Promise<void> {
    this.wanted = true;
    this.send({ t: 'close' });
    const timer = setTimeout(() => this.child.kill('SIGKILL'), STOP_GRACE_MS);
    await this.ended;
    clearTimeout(timer);
  }

  private send(message: HostRequest): void {
    // An error here is the channel closing under us: `close` follows and fails every open call.
    if (this.child.connected) this.child.send(message, () => {});
  }

  private receive(message: HostReply): void {
    const call = this.calls.get(message.id);
    if (!call) return;
    if (message.t === 'step') return this.show(message.id, call, () => call.onStep?.(message.step));
    if (message.t === 'progress') return this.show(message.id, call, () => call.onProgress?.(message.done, message.total));
    this.calls.delete(message.id);
    if (message.t === 'done') call.resolve(message.value);
    else call.reject(new RemoteEngineError(message.error));
  }

  /** A listener that throws fails its own request and nothing else. */
  private show(id: number, call: OpenCall, tell: () => void): void {
    try {
      tell();
    } catch (error) {
      this.calls.delete(id);
      this.send({ t: 'cancel', id });
      call.reject(error as Error);
    }
  }

  private finish(end: ProcessEnd): void {
    if (this.end) return;
    this.end = end;
    const reason = this.wanted ? 'the engine host was stopped while the request ran' : describeEnd(end);
    for (const call of this.calls.values()) call.reject(new HostUnavailableError(reason, true));
    this.calls.clear();
    this.options.onEnd(end, this.wanted);
  }
}
