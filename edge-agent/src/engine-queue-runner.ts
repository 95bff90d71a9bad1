/**
 * The queue in front of the engine host: first come, first served, one at a time, at most `maxWaiting` waiting. It
 * tells the trace recorder and the step observer about every generation, and ends a request that is aborted whether
 * it waits or runs. Nothing here reads prompts or answers.
 */
import type { Logger, Service } from '@moefleet/runtime';
import { type EngineHost, HostUnavailableError } from './engine-host';
import { AnswerComplete, type CompletionJob, type CompletionOutcome, type EngineQueue, QueueFullError } from './engine-queue';
import type { GenerateResult, Step } from './native';
import type { StepObserver } from './step-observer';
import { SYSTEM_TIME, type TimeSource } from './trace/request-clock';
import type { TraceRecorder } from './trace/trace-recorder';

export interface EngineQueueOptions {
  host: EngineHost;
  recorder: TraceRecorder;
  observer: StepObserver;
  log: Logger;
  /** the name clients know the loaded model by, for spans */
  modelName: () => string;
  /** requests that may wait behind the running one; default 16 */
  maxWaiting?: number;
  time?: TimeSource;
}

interface Ticket {
  run(): Promise<void>;
  refuse(reason: unknown): void;
}

export class EngineQueueRunner implements EngineQueue, Service {
  readonly name = 'engine queue';
  private readonly tickets: Ticket[] = [];
  private readonly stopping = new AbortController();
  private readonly time: TimeSource;
  private active = false;
  private working: Promise<void> = Promise.resolve();
  private done = 0;
  private failed = 0;

  constructor(private readonly options: EngineQueueOptions) {
    this.time = options.time ?? SYSTEM_TIME;
  }

  get waiting(): number {
    return this.tickets.length;
  }

  get running(): boolean {
    return this.active;
  }

  /** Generations that ended since the agent started, well or not; and those of them that failed. */
  get requests(): { ended: number; failed: number } {
    return { ended: this.done, failed: this.failed };
  }

  async start(): Promise<void> {}

  /** Refuses those that wait, cancels the one that runs and waits for its end. */
  async stop(): Promise<void> {
    const reason = new HostUnavailableError('the agent is stopping', true);
    this.stopping.abort(reason);
    for (const ticket of this.tickets.splice(0)) ticket.refuse(reason);
    await this.working;
  }

  complete(job: CompletionJob, onStep: (step: Step) => void, signal: AbortSignal): Promise<CompletionOutcome> {
    const queuedNs = this.time.monotonicNs();
    return this.exclusive((running) => this.generate(job, onStep, running, queuedNs), signal);
  }

  exclusive<T>(work: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.stopping.signal.aborted) return reject(this.stopping.signal.reason);
      if (signal.aborted) return reject(signal.reason);
      const limit = this.options.maxWaiting ?? 16;
      if (this.active && this.tickets.length >= limit) return reject(new QueueFullError(this.tickets.length));
      const leave = () => {
        const index = this.tickets.indexOf(ticket);
        if (index >= 0) this.tickets.splice(index, 1);
        reject(signal.reason);
      };
      const ticket: Ticket = {
        run: async () => {
          signal.removeEventListener('abort', leave);
          const linked = linkSignals(signal, this.stopping.signal);
          try {
            resolve(await work(linked.signal));
          } catch (error) {
            reject(error);
          } finally {
            linked.unlink();
          }
        },
        refuse: (reason) => {
          signal.removeEventListener('abort', leave);
          reject(reason);
        },
      };
      signal.addEventListener('abort', leave, { once: true });
      this.tickets.push(ticket);
      if (this.active) return;
      this.active = true;
      this.working = this.drain();
    });
  }

  private async drain(): Promise<void> {
    for (let next = this.tickets.shift(); next; next = this.tickets.shift()) await next.run();
    this.active = false;
  }

  private async generate(job: CompletionJob, onStep: (step: Step) => void, signal: AbortSignal, queuedNs: bigint): Promise<CompletionOutcome> {
    const { host, recorder, observer } = this.options;
    if (host.state.t !== 'ready') throw unavailable(host);
    const { requestId } = job.generate;
    const generate = { ...job.generate, captureRouter: observer.wantsRouter() || job.generate.captureRouter };
    const recorded = recorder.begin({
      generate, operation: job.operation, traceparent: job.traceparent, queuedNs,
      model: { name: this.options.modelName(), hash: host.state.model.hash }, hostStart: host.starts,
    });
    try {
      const told = await host.generate(generate, (step) => {
        recorded.step(step);
        this.show(() => observer.onStep(requestId, step));
        this.show(() => onStep(step));
      }, signal);
      const result = withReason(told, signal);
      this.done += 1;
      const outcome = recorded.end({ t: 'ended', result });
      // An answer that names its traces must be able to keep its word, also if the agent is killed right after it.
      await recorder.flushed();
      return { result, ...outcome };
    } catch (error) {
      this.done += 1;
      this.failed += 1;
      const message = error instanceof Error ? error.message : String(error);
      recorded.end({ t: 'failed', errorType: errorTypeOf(error), message });
      this.options.log.warn({ requestId, errorType: errorTypeOf(error), reason: message }, 'request failed');
      throw error;
    } finally {
      this.show(() => observer.onEnd(requestId));
    }
  }

  /** A listener that throws must not end the generation nor spoil the account. */
  private show(tell: () => void): void {
    try {
      tell();
    } catch (err) {
      this.options.log.error({ err }, 'step listener failed');
    }
  }
}

function unavailable(host: EngineHost): HostUnavailableError {
  const { state } = host;
  if (state.t === 'loading') return new HostUnavailableError(`the model is being loaded: ${state.modelPath}`, true);
  if (state.t === 'failed') return new HostUnavailableError(state.reason, state.retryAtMs !== null);
  return new HostUnavailableError('no model is loaded', true);
}

function withReason(result: GenerateResult, signal: AbortSignal): GenerateResult {
  const complete = result.finishReason === 'cancelled' && signal.reason instanceof AnswerComplete;
  return complete ? { ...result, finishReason: 'stop' } : result;
}

/** The engine's error code where it has one, else the class. */
function errorTypeOf(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown';
  const { code } = error as { code?: unknown };
  return typeof code === 'string' ? code : error.name;
}

/** Aborted with the reason of whichever of two signals is first; AbortSignal.any leaks where one of them lives long. */
function linkSignals(first: AbortSignal, second: AbortSignal): { signal: AbortSignal; unlink: () => void } {
  const controller = new AbortController();
  const sources = [first, second].map((source) => ({ source, listener: () => controller.abort(source.reason) }));
  for (const { source, listener } of sources) {
    if (source.aborted) listener();
    else source.addEventListener('abort', listener, { once: true });
  }
  const unlink = () => sources.forEach(({ source, listener }) => source.removeEventListener('abort', listener));
  return { signal: controller.signal, unlink };
}
