/**
 * The spans of one sampled request, made as its steps arrive and handed on in batches, so that a long generation
 * holds no more than one batch in memory:
 *
 *   chat <model>                     the request, in the caller's trace where a traceparent came with it
 *     prefill | token                one per step of the engine
 *       flash.read                   one per miss, however many reads it took
 *
 * A trace holds at most `maxSpansPerTrace` spans and then continues in another one, whose root
 * `chat <model> (continued)` links to the request's span. A step stays whole unless it alone is larger than a trace, or
 * comes in parts, as a long prefill does; each part has a span then.
 * No prompt, completion or token id is on any span.
 */
import { type Attributes, SpanKind, type SpanStatus, SpanStatusCode } from '@opentelemetry/api';
import type { ReadableSpan } from '@opentelemetry/sdk-trace-base';
import { type GenerateRequest, type GenerateResult, MISS_EVENT, MISS_EVENT_FIELDS, PREFETCH, type Step } from '../native';
import { ERROR_TYPE, GEN_AI, MOEFLEET } from './attribute-names';
import type { RequestClock } from './request-clock';
import { type SpanFactory, spanContext } from './span-factory';
import { missSpanId, requestSpanId, traceIdOf } from './span-ids';
import type { ParentSpan } from './trace-sampling';

export const FLASH_READ = 'flash.read';

export interface RequestBegin {
  generate: GenerateRequest;
  operation: string;
  /** id of the model as clients name it, and its SHA-256 */
  model: { name: string; hash: string };
  bootId: string;
  /** which start of the engine host serves it */
  hostStart: number;
  parent: ParentSpan | null;
  /** monotonic, when the request entered the queue */
  queuedNs: bigint;
}

export type RequestEnd =
  | { t: 'ended'; result: GenerateResult }
  | { t: 'failed'; errorType: string; message: string };

export interface TraceLimits {
  /** at least 3: a root, a step and a miss */
  maxSpansPerTrace: number;
  maxSpansPerBatch: number;
}

export const DEFAULT_TRACE_LIMITS: TraceLimits = { maxSpansPerTrace: 2000, maxSpansPerBatch: 512 };

interface Part {
  index: number;
  traceId: string;
  rootId: string;
  /** spans in this trace, its root counted from the begin */
  spans: number;
  startNs: number;
  endNs: number;
}

export class RequestTrace {
  private readonly parts: string[] = [];
  private readonly beganNs: bigint;
  private part: Part;
  private pending: ReadableSpan[] = [];
  /** of the latest step: its number, and the spans it has got */
  private latest = { step: -1, spans: 0 };

  constructor(
    private readonly begin: RequestBegin,
    private readonly clock: RequestClock,
    private readonly factory: SpanFactory,
    private readonly limits: TraceLimits,
    private readonly emit: (spans: ReadableSpan[], misses: number) => void,
  ) {
    this.beganNs = clock.nowNs();
    this.part = this.openPart(0);
  }

  /** 32 hex digits each, in order. */
  get traceIds(): string[] {
    return [...this.parts];
  }

  step(step: Step): void {
    const misses = step.missEvents.length / MISS_EVENT_FIELDS;
    const fits = this.part.spans + 1 + misses <= this.limits.maxSpansPerTrace;
    if (!fits && this.part.spans > 1) this.continueTrace();
    if (step.step !== this.latest.step) this.latest = { step: step.step, spans: 0 };
    let done = 0;
    do {
      if (done > 0) this.continueTrace();
      const room = this.limits.maxSpansPerTrace - this.part.spans - 1;
      const until = Math.min(misses, done + room);
      this.addStep(step, this.latest.spans, done, until);
      this.latest.spans += 1;
      done = until;
    } while (done < misses);
  }

  end(end: RequestEnd): void {
    if (this.part.index > 0) this.addContinuationRoot();
    this.addRoot(end);
    this.flush(0);
  }

  private openPart(index: number): Part {
    const { generate: { requestId }, parent } = this.begin;
    const traceId = index === 0 && parent ? parent.traceId : traceIdOf(requestId, index);
    this.parts.push(traceId);
    return { index, traceId, rootId: requestSpanId(requestId, `root ${index}`), spans: 1, startNs: Infinity, endNs: 0 };
  }

  private continueTrace(): void {
    if (this.part.index > 0) this.addContinuationRoot();
    this.flush(0);
    this.part = this.openPart(this.part.index + 1);
  }

  private addStep(step: Step, slice: number, from: number, until: number): void {
    const { part } = this;
    const name = step.step === 0 ? 'prefill' : 'token';
    const stepId = requestSpanId(this.begin.generate.requestId, `step ${step.step} ${slice}`);
    part.startNs = Math.min(part.startNs, step.startNs);
    part.endNs = Math.max(part.endNs, step.endNs);
    this.add(this.factory.make({
      name: slice === 0 ? name : `${name} (continued)`,
      kind: SpanKind.INTERNAL,
      traceId: part.traceId,
      spanId: stepId,
      parent: spanContext(part.traceId, part.rootId),
      start: this.clock.wall(step.startNs),
      end: this.clock.wall(step.endNs),
      attributes: this.attributes({
        [MOEFLEET.step]: step.step,
        [MOEFLEET.hits]: step.hits,
        [MOEFLEET.misses]: step.misses,
      }),
    }));
    for (let index = from; index < until; index += 1) this.addMiss(step.missEvents, index * MISS_EVENT_FIELDS, stepId);
    part.spans += 1 + until - from;
  }

  private addMiss(events: Float64Array, at: number, stepId: string): void {
    const field = (name: keyof typeof MISS_EVENT) => events[at + MISS_EVENT[name]]!;
    const { traceId } = this.part;
    const evicted = field('evictedExpert');
    this.add(this.factory.make({
      name: FLASH_READ,
      kind: SpanKind.INTERNAL,
      traceId,
      spanId: missSpanId(this.begin.bootId, this.begin.hostStart, field('missNumber')),
      parent: spanContext(traceId, stepId),
      start: this.clock.wall(field('startNs')),
      end: this.clock.wall(field('endNs')),
      attributes: this.attributes({
        [MOEFLEET.layer]: field('layer'),
        [MOEFLEET.expert]: field('expert'),
        [MOEFLEET.bytes]: field('bytes'),
        [MOEFLEET.queueWaitNs]: field('queueWaitNs'),
        [MOEFLEET.stallNs]: field('stallNs'),
        [MOEFLEET.prefetch]: PREFETCH[field('prefetch')] ?? 'none',
        [MOEFLEET.lambda]: field('lambda'),
        [MOEFLEET.generation]: field('generation'),
        [MOEFLEET.missNumber]: field('missNumber'),
        [MOEFLEET.reads]: field('reads'),
        ...(evicted >= 0 ? { [MOEFLEET.evictedExpert]: evicted } : {}),
      }),
    }));
  }

  private addContinuationRoot(): void {
    const { part } = this;
    const first = spanContext(this.parts[0]!, requestSpanId(this.begin.generate.requestId, 'root 0'));
    this.add(this.factory.make({
      name: `${this.rootName()} (continued)`,
      kind: SpanKind.INTERNAL,
      traceId: part.traceId,
      spanId: part.rootId,
      parent: null,
      start: this.clock.wall(part.startNs),
      end: this.clock.wall(part.endNs),
      attributes: this.attributes({ ...this.modelAttributes(), [MOEFLEET.tracePart]: part.index }),
      links: [{ context: first }],
    }));
  }

  private addRoot(end: RequestEnd): void {
    const { generate, parent, queuedNs } = this.begin;
    this.add(this.factory.make({
      name: this.rootName(),
      kind: this.begin.operation === 'measure' ? SpanKind.INTERNAL : SpanKind.SERVER,
      traceId: this.parts[0]!,
      spanId: requestSpanId(generate.requestId, 'root 0'),
      parent: parent ? spanContext(parent.traceId, parent.spanId, true) : null,
      start: this.clock.wall(queuedNs),
      end: this.clock.wall(this.clock.nowNs()),
      attributes: this.attributes({
        ...this.modelAttributes(),
        [GEN_AI.requestMaxTokens]: generate.maxTokens,
        [GEN_AI.requestTemperature]: generate.temperature,
        [GEN_AI.requestTopP]: generate.topP,
        [GEN_AI.requestSeed]: generate.seed,
        [MOEFLEET.coldCache]: generate.coldCache,
        [MOEFLEET.requestQueueNs]: Number(this.beganNs - queuedNs),
        [MOEFLEET.tracePart]: 0,
        [MOEFLEET.traceParts]: this.parts.length,
        ...endAttributes(end, generate),
      }),
      status: endStatus(end),
    }));
  }

  private rootName(): string {
    return `${this.begin.operation} ${this.begin.model.name}`;
  }

  private modelAttributes(): Attributes {
    return {
      [GEN_AI.operationName]: this.begin.operation,
      [GEN_AI.providerName]: 'moefleet',
      [GEN_AI.requestModel]: this.begin.model.name,
      [GEN_AI.responseModel]: this.begin.model.name,
      [MOEFLEET.modelHash]: this.begin.model.hash,
    };
  }

  private attributes(rest: Attributes): Attributes {
    return { [MOEFLEET.requestId]: this.begin.generate.requestId, ...rest };
  }

  private add(span: ReadableSpan): void {
    this.pending.push(span);
    this.flush(this.limits.maxSpansPerBatch);
  }

  /** Hands on what is pending once it has reached `atLeast` spans. */
  private flush(atLeast: number): void {
    if (this.pending.length === 0 || this.pending.length < atLeast) return;
    const spans = this.pending;
    this.pending = [];
    this.emit(spans, spans.filter((span) => span.name === FLASH_READ).length);
  }
}

function endAttributes(end: RequestEnd, generate: GenerateRequest): Attributes {
  if (end.t === 'failed') {
    return { [ERROR_TYPE]: end.errorType, [GEN_AI.usageInputTokens]: generate.prompt.length };
  }
  const { result } = end;
  return {
    [GEN_AI.responseId]: generate.requestId,
    [GEN_AI.responseFinishReasons]: [result.finishReason],
    [GEN_AI.usageInputTokens]: result.promptTokens,
    [GEN_AI.usageOutputTokens]: result.completionTokens,
    [MOEFLEET.misses]: result.prefillMisses + result.decodeMisses,
    [MOEFLEET.hits]: result.prefillHits + result.decodeHits,
    [MOEFLEET.swaps]: result.decodeSwaps,
    [MOEFLEET.flashBytes]: result.flashBytes,
    [MOEFLEET.stallNs]: result.stallNs,
    [MOEFLEET.missEventsDropped]: result.missEventsDropped,
  };
}

function endStatus(end: RequestEnd): SpanStatus {
  return end.t === 'failed' ? { code: SpanStatusCode.ERROR, message: end.message } : { code: SpanStatusCode.UNSET };
}
