/**
 * One engine, one request at a time: the bounded queue in front of the engine host that HTTP requests and the
 * coordinator's measurements share.
 */
import type { GenerateRequest, GenerateResult, Step } from './native';

/** The queue is full; HTTP answers 429 with `Retry-After`. */
export class QueueFullError extends Error {
  override readonly name = 'QueueFullError';
  constructor(readonly waiting: number) {
    super(`${waiting} requests are waiting for the engine already; try again later`);
  }
}

/**
 * Reason to abort a completion whose answer is complete already (a stop string was found). Its outcome says `stop`
 * instead of `cancelled`.
 */
export class AnswerComplete extends Error {
  override readonly name = 'AnswerComplete';
  constructor() {
    super('the answer is complete');
  }
}

export interface CompletionJob {
  /** `requestId` of `generate` is the product's request id, on spans and headers as `moefleet.request.id` */
  generate: GenerateRequest;
  /** gen_ai.operation.name of its trace: `chat`, `text_completion`, or `measure` */
  operation: string;
  /** W3C traceparent of the caller, null for none */
  traceparent: string | null;
}

export interface CompletionOutcome {
  result: GenerateResult;
  /** misses counted by the engine for this request, prefill and decode together */
  misses: number;
  /** traces (32 hex digits each) that hold its spans; empty when it was not sampled */
  traceIds: string[];
}

export interface EngineQueue {
  readonly waiting: number;
  /**
   * Runs after those before it. Rejects with QueueFullError, HostUnavailableError, or the engine's error.
   * Aborting `signal` leaves the queue, or ends the generation at the next layer (outcome `cancelled`).
   */
  complete(job: CompletionJob, onStep: (step: Step) => void, signal: AbortSignal): Promise<CompletionOutcome>;
  /** Runs `work` with the engine to itself, in the same queue. */
  exclusive<T>(work: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T>;
}

/** What the trace side tells the telemetry side. counted = exported + spooled + dropped + unsampled between requests. */
export interface MissAccountSnapshot {
  counted: number; exported: number; spooled: number; dropped: number; unsampled: number;
}

export interface LastTrace { requestId: string; traceIds: string[]; misses: number; timeMs: number; }

export interface TraceReport {
  account(): MissAccountSnapshot;
  lastTrace(): LastTrace | null;
  /** from the spec in force, in [0,1] */
  setTraceRatio(ratio: number): void;
}
