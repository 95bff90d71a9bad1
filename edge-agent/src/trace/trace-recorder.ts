/**
 * From the engine's steps to batches in the spool. It decides per whole request whether it is sampled, and keeps the
 * account whatever becomes of the request: misses reach it with the batch that holds their spans, those the event
 * ring lost as dropped, those of an unsampled request when it ends.
 */
import { ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer';
import type { ReadableSpan } from '@opentelemetry/sdk-trace-base';
import type { Logger } from '@moefleet/runtime';
import type { LastTrace, MissAccountSnapshot, TraceReport } from '../engine-queue';
import { MISS_EVENT_FIELDS, type Step } from '../native';
import type { MissAccount } from './miss-account';
import { RequestClock, SYSTEM_TIME, type TimeSource } from './request-clock';
import { DEFAULT_TRACE_LIMITS, type RequestBegin, type RequestEnd, RequestTrace, type TraceLimits } from './request-trace';
import { SpanFactory, type SpanOrigin } from './span-factory';
import { traceIdOf } from './span-ids';
import { isSampled, parseTraceparent } from './trace-sampling';
import type { TraceSpool } from './trace-spool';

/** More than these are found by `moefleet.request.id`; a telemetry frame stays small. */
const MAX_REPORTED_TRACES = 256;

export interface TraceRecorderOptions {
  origin: SpanOrigin;
  spool: TraceSpool;
  account: MissAccount;
  log: Logger;
  /** in [0,1]; until the first spec says otherwise */
  traceRatio?: number;
  time?: TimeSource;
  limits?: TraceLimits;
}

/** What the queue knows when the engine takes a request. */
export type RecordedBegin = Omit<RequestBegin, 'parent' | 'bootId'> & { traceparent: string | null };

/** The misses of a request and the traces that hold them; no traces where it was not sampled. */
export interface RecordedOutcome { misses: number; traceIds: string[]; }

export class TraceRecorder implements TraceReport {
  private readonly factory: SpanFactory;
  private ratio: number;
  private last: LastTrace | null = null;

  constructor(private readonly options: TraceRecorderOptions) {
    this.factory = new SpanFactory(options.origin);
    this.ratio = options.traceRatio ?? 1;
  }

  account(): MissAccountSnapshot {
    return this.options.account.snapshot();
  }

  lastTrace(): LastTrace | null {
    return this.last;
  }

  setTraceRatio(ratio: number): void {
    this.ratio = ratio;
  }

  /** Returns when every span recorded so far is in a file, where the end of this process cannot lose it. */
  flushed(): Promise<void> {
    return this.options.spool.flushed();
  }

  /** Call `step` for each step in order, then `end` once, whatever the end. */
  begin(recorded: RecordedBegin): RecordedRequest {
    const { origin, limits, time } = this.options;
    const parent = parseTraceparent(recorded.traceparent);
    const traceId = parent?.traceId ?? traceIdOf(recorded.generate.requestId, 0);
    const trace = isSampled(traceId, this.ratio, parent)
      ? new RequestTrace(
        { ...recorded, parent, bootId: origin.bootId }, new RequestClock(time ?? SYSTEM_TIME), this.factory,
        limits ?? DEFAULT_TRACE_LIMITS, (spans, misses) => this.spool(spans, misses))
      : null;
    return new RecordedRequest(trace, this.options.account, (outcome) => this.note(recorded.generate.requestId, outcome));
  }

  private spool(spans: ReadableSpan[], misses: number): void {
    const body = ProtobufTraceSerializer.serializeRequest(spans);
    if (body) this.options.spool.put(body, spans.length, misses);
    else this.options.account.enter(misses, 'dropped');
  }

  private note(requestId: string, { misses, traceIds }: RecordedOutcome): void {
    if (traceIds.length === 0) return;
    const timeMs = (this.options.time ?? SYSTEM_TIME).wallMs();
    this.last = { requestId, traceIds: traceIds.slice(0, MAX_REPORTED_TRACES), misses, timeMs };
  }
}

export class RecordedRequest {
  /** misses that came with an event, and misses that the steps say there were */
  private events = 0;
  private misses = 0;

  constructor(
    private readonly trace: RequestTrace | null,
    private readonly account: MissAccount,
    private readonly ended: (outcome: RecordedOutcome) => void,
  ) {}

  step(step: Step): void {
    this.events += step.missEvents.length / MISS_EVENT_FIELDS;
    this.misses += step.misses;
    this.trace?.step(step);
  }

  end(end: RequestEnd): RecordedOutcome {
    const told = end.t === 'ended' ? end.result.prefillMisses + end.result.decodeMisses : this.misses;
    const misses = Math.max(told, this.events);
    this.trace?.end(end);
    if (this.trace) this.account.enter(misses - this.events, 'dropped');
    else this.account.enter(misses, 'unsampled');
    const outcome = { misses, traceIds: this.trace?.traceIds ?? [] };
    this.ended(outcome);
    return outcome;
  }
}
