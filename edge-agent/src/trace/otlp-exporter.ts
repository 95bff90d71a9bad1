/**
 * Empties the spool into an OTLP/HTTP collector, oldest batch first, one at a time. What may pass later is tried again
 * with jittered backoff for as long as it takes (the spool has the bound): no connection, no answer, 429, 502, 503
 * and 504, as the OTLP specification has it. Any other refusal is final; its spans count as dropped.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer';
import { backoffMs, type Logger, type Service } from '@moefleet/runtime';
import type { TraceSpool } from './trace-spool';

const RETRYABLE = new Set([429, 502, 503, 504]);
const MAX_RETRY_AFTER_MS = 5 * 60_000;
const MAX_ANSWER_BYTES = 64 * 1024;

export type SendOutcome =
  | { t: 'accepted'; rejectedSpans: number; message: string }
  | { t: 'refused'; reason: string }
  /** `afterMs`: what the collector asked for, null where it did not */
  | { t: 'later'; reason: string; afterMs: number | null };

export interface OtlpExporterOptions {
  /** base address such as http://127.0.0.1:4318, without /v1/traces; null: batches stay in the spool */
  endpoint: string | null;
  spool: TraceSpool;
  log: Logger;
  /** in [0,1) */
  random?: () => number;
  timeoutMs?: number;
  retryBaseMs?: number;
  retryMaxMs?: number;
}

export class OtlpExporter implements Service {
  readonly name = 'OTLP exporter';
  private readonly url: string | null;
  private readonly stopping = new AbortController();
  private loop: Promise<void> | null = null;
  private wake: () => void = () => {};
  private forgetListener: () => void = () => {};
  private sentSpans = 0;
  /** reason of the last outcome that was no success; null while all goes well */
  private trouble: string | null = null;

  constructor(private readonly options: OtlpExporterOptions) {
    this.url = options.endpoint === null ? null : `${options.endpoint.replace(/\/+$/, '')}/v1/traces`;
  }

  get exportedSpans(): number {
    return this.sentSpans;
  }

  /** Why nothing can be delivered at the moment; null where all goes well. */
  get waitingFor(): string | null {
    return this.trouble;
  }

  /** Does nothing where there is no endpoint; the agent's start-up says so. */
  async start(): Promise<void> {
    if (this.url === null) return;
    this.forgetListener = this.options.spool.onPut(() => this.wake());
    this.loop = this.run(this.url).catch((err: unknown) => {
      this.options.log.error({ err }, 'exporter ended; spans stay in the spool until the agent is started again');
    });
  }

  /** A batch being sent stays in the spool; sent again it makes the same spans. */
  async stop(): Promise<void> {
    this.stopping.abort();
    this.forgetListener();
    this.wake();
    await this.loop;
  }

  private async run(url: string): Promise<void> {
    const { signal } = this.stopping;
    for (let attempt = 0; !signal.aborted;) {
      const woken = new Promise<void>((resolve) => { this.wake = resolve; });
      const taken = await this.options.spool.take();
      if (!taken) {
        await woken;
        continue;
      }
      const outcome = await this.send(url, taken.body);
      if (outcome.t === 'later') {
        this.options.spool.release();
        if (signal.aborted) return;
        this.note(outcome.reason);
        await this.pause(attempt, outcome.afterMs);
        attempt += 1;
        continue;
      }
      attempt = 0;
      const { batch } = taken;
      const rejected = outcome.t === 'refused' ? batch.spans : Math.min(batch.spans, outcome.rejectedSpans);
      // Which spans a collector rejected it does not say: misses are taken to be among them, the figure that hides nothing.
      this.options.spool.settle(batch, Math.min(rejected, batch.misses), rejected);
      this.sentSpans += batch.spans - rejected;
      if (rejected === 0) this.note(null);
      else this.options.log.warn({ spans: rejected, misses: Math.min(rejected, batch.misses), reason: outcome.t === 'refused' ? outcome.reason : outcome.message }, 'collector refused spans, dropped');
    }
  }

  private async send(url: string, body: Uint8Array): Promise<SendOutcome> {
    const timeoutMs = this.options.timeoutMs ?? 10_000;
    const cut = new AbortController();
    const onStop = () => cut.abort(new Error('the agent is stopping'));
    const timer = setTimeout(() => cut.abort(new Error(`no answer in ${timeoutMs} ms`)), timeoutMs);
    this.stopping.signal.addEventListener('abort', onStop);
    try {
      this.stopping.signal.throwIfAborted();
      const response = await fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/x-protobuf' },
        body: Buffer.from(body),
        redirect: 'manual',
        signal: cut.signal,
      });
      const answer = await readBounded(response);
      if (response.ok) return readAnswer(answer);
      const reason = `HTTP ${response.status} from ${url}`;
      if (!RETRYABLE.has(response.status)) return { t: 'refused', reason };
      return { t: 'later', reason, afterMs: readRetryAfter(response.headers.get('retry-after'), Date.now()) };
    } catch (error) {
      return { t: 'later', reason: reasonOf(error, url), afterMs: null };
    } finally {
      clearTimeout(timer);
      this.stopping.signal.removeEventListener('abort', onStop);
    }
  }

  private async pause(attempt: number, afterMs: number | null): Promise<void> {
    const jittered = backoffMs(attempt, {
      baseMs: this.options.retryBaseMs ?? 500,
      maxMs: this.options.retryMaxMs ?? 15_000,
      random: this.options.random ?? Math.random,
    });
    // What the collector asks for is the least; the jitter keeps a fleet from coming back in step.
    await delay((afterMs ?? 0) + jittered, undefined, { signal: this.stopping.signal }).catch(() => {});
  }

  private note(reason: string | null): void {
    if (reason !== null && this.trouble === null) this.options.log.warn({ reason }, 'collector away, spans wait in the spool');
    if (reason === null && this.trouble !== null) this.options.log.info({ batches: this.options.spool.batches }, 'collector takes spans again');
    this.trouble = reason;
  }
}

/** `Retry-After` in seconds or as a date; milliseconds from `nowMs`, at most five minutes; null where it says nothing. */
export function readRetryAfter(header: string | null, nowMs: number): number | null {
  if (header === null || header.trim() === '') return null;
  const seconds = Number(header);
  const waitMs = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - nowMs;
  return Number.isFinite(waitMs) ? Math.min(MAX_RETRY_AFTER_MS, Math.max(0, waitMs)) : null;
}

function readAnswer(answer: Uint8Array): SendOutcome {
  let partial;
  try {
    partial = answer.length > 0 ? ProtobufTraceSerializer.deserializeResponse(answer).partialSuccess : undefined;
  } catch {
    // A success whose body is no protobuf is a success: some proxies answer with text.
  }
  return { t: 'accepted', rejectedSpans: Math.max(0, partial?.rejectedSpans ?? 0), message: partial?.errorMessage ?? '' };
}

async function readBounded(response: Response): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) break;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function reasonOf(error: unknown, url: string): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = (cause as { code?: unknown }).code;
  return `${url}: ${typeof code === 'string' ? code : String(cause instanceof Error ? cause.message : cause)}`;
}
