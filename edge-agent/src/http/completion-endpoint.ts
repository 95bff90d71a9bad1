/**
 * The two completion endpoints: from an HTTP request through the engine's queue to a JSON answer or a stream of
 * events. A client that goes away ends its request. Until the first text there is no status line, so that a refusal
 * can still have its own.
 */
import { randomBytes } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from '@moefleet/runtime';
import type { EngineHost } from '../engine-host';
import type { EngineQueue } from '../engine-queue';
import type { AgentMetrics, RequestOutcomeLabel } from './agent-metrics';
import { type AnswerHead, type AnswerShape, CHAT, moefleetOf, TEXT, usageOf } from './answer-shape';
import { ApiError, toApiError } from './api-error';
import { readChatRequest, readTextRequest, type SamplingRequest } from './completion-request';
import { type Answer, chatPrompt, runCompletion, type RunRequest, textPrompt } from './completion-run';
import { EventStream } from './event-stream';
import { checkModel, modelIdOf, readyModel } from './model-id';

/** A header holds this many trace ids; the JSON holds all. */
const MAX_HEADER_TRACES = 16;
const MAX_RETRY_AFTER_S = 30;

export interface CompletionEndpointOptions {
  engine: EngineHost;
  queue: EngineQueue;
  metrics: AgentMetrics;
  log: Logger;
}

/** The client closed the connection before its answer was complete. */
class ClientGone extends Error {
  override readonly name = 'ClientGone';
}

export class CompletionEndpoint {
  private readonly running = new Map<AbortController, Promise<unknown>>();
  /** mean seconds of an answer, the newest weighing a quarter: how long a turn in the queue takes */
  private meanSeconds = 1;

  constructor(private readonly options: CompletionEndpointOptions) {}

  readonly chat = (request: FastifyRequest, reply: FastifyReply) => this.serve(CHAT, request, reply);
  readonly text = (request: FastifyRequest, reply: FastifyReply) => this.serve(TEXT, request, reply);

  /** Seconds after which a turn has probably come free. */
  get retryAfterSeconds(): number {
    return Math.min(MAX_RETRY_AFTER_S, Math.max(1, Math.ceil(this.meanSeconds)));
  }

  /** Ends what runs with `reason` and waits until it is answered, or for `graceMs`. */
  async stop(reason: Error, graceMs: number): Promise<void> {
    const ending = [...this.running.entries()].map(([client, served]) => {
      client.abort(reason);
      return served;
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => { timer = setTimeout(resolve, graceMs); });
    await Promise.race([Promise.allSettled(ending), late]);
    clearTimeout(timer);
  }

  private async serve(shape: AnswerShape, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const client = new AbortController();
    const onClose = () => { if (!reply.raw.writableFinished) client.abort(new ClientGone('the client closed the connection')); };
    reply.raw.once('close', onClose);
    const served = this.answer(shape, request, reply, client.signal);
    this.running.set(client, served);
    try {
      return await served;
    } finally {
      this.running.delete(client);
    }
  }

  private async answer(shape: AnswerShape, request: FastifyRequest, reply: FastifyReply, client: AbortSignal): Promise<FastifyReply> {
    const begunMs = performance.now();
    const hex = randomBytes(12).toString('hex');
    const requestId = `req-${hex}`;
    reply.header('x-moefleet-request-id', requestId);
    const events = new EventStream(reply.raw);
    let outcome: RequestOutcomeLabel = 'ok';
    try {
      const prepared = await this.prepare(shape, request, requestId);
      const head: AnswerHead = { hex, created: Math.floor(Date.now() / 1000), model: prepared.modelId };
      if (prepared.run.sampling.stream) await this.stream(shape, head, prepared.run, reply, events, client);
      else await this.whole(shape, head, prepared.run, reply, client);
    } catch (error) {
      outcome = await this.refuse(error, requestId, reply, events, client);
    }
    const seconds = (performance.now() - begunMs) / 1000;
    if (outcome === 'ok') this.meanSeconds += (seconds - this.meanSeconds) / 4;
    this.options.metrics.requestEnded(shape.operation, outcome, seconds);
    this.options.log.debug({ requestId, operation: shape.operation, outcome, seconds }, 'request ended');
    return reply;
  }

  private async prepare(shape: AnswerShape, request: FastifyRequest, requestId: string): Promise<{ run: RunRequest; modelId: string }> {
    const { engine } = this.options;
    const isChat = shape.operation === 'chat';
    const body = isChat ? readChatRequest(request.body) : readTextRequest(request.body);
    const model = readyModel(engine);
    checkModel(model, body.model);
    const fitted = 'messages' in body ? await chatPrompt(engine, model, body) : await textPrompt(engine, model, body);
    const sampling: SamplingRequest = body;
    const traceparent = headerOf(request, 'traceparent');
    return { modelId: modelIdOf(model), run: { requestId, operation: shape.operation, traceparent, sampling, ...fitted } };
  }

  private async whole(shape: AnswerShape, head: AnswerHead, run: RunRequest, reply: FastifyReply, client: AbortSignal): Promise<void> {
    const pieces: string[] = [];
    const answer = await runCompletion(this.options.queue, run, (text) => pieces.push(text), client);
    if (client.aborted) throw client.reason;
    const body = { ...shape.whole(head, pieces.join(''), answer.finishReason), usage: usageOf(answer), moefleet: moefleetOf(run.requestId, answer) };
    void reply.headers(missHeaders(answer)).send(body);
  }

  private async stream(shape: AnswerShape, head: AnswerHead, run: RunRequest, reply: FastifyReply, events: EventStream, client: AbortSignal): Promise<void> {
    const { includeUsage } = run.sampling;
    const usage = includeUsage ? { usage: null } : {};
    const open = () => {
      if (events.opened || client.aborted) return;
      reply.hijack();
      events.open({ 'x-moefleet-request-id': run.requestId }, ['x-moefleet-misses', 'x-moefleet-trace-id']);
      if (shape === CHAT) events.send({ ...shape.chunk(head, '', true, null), ...usage });
    };
    const answer = await runCompletion(this.options.queue, run, (text) => {
      open();
      events.send({ ...shape.chunk(head, text, false, null), ...usage });
    }, client);
    if (client.aborted) throw client.reason;
    open();
    const moefleet = { moefleet: moefleetOf(run.requestId, answer) };
    const last = shape.chunk(head, null, false, answer.finishReason);
    if (includeUsage) {
      events.send({ ...last, ...usage });
      events.send({ ...shape.bare(head), usage: usageOf(answer), ...moefleet });
    } else {
      events.send({ ...last, ...moefleet });
    }
    events.send('[DONE]');
    await events.end(missHeaders(answer));
  }

  private async refuse(error: unknown, requestId: string, reply: FastifyReply, events: EventStream, client: AbortSignal): Promise<RequestOutcomeLabel> {
    if (client.aborted && client.reason instanceof ClientGone) {
      if (!reply.sent) reply.hijack();
      return 'cancelled';
    }
    const refusal = toApiError(client.aborted ? client.reason : error, this.retryAfterSeconds);
    if (refusal.status === 500) this.options.log.error({ err: error, requestId }, 'request failed');
    if (events.opened) {
      events.send(refusal.body());
      await events.end({});
    } else {
      sendError(reply, refusal);
    }
    return refusal.status >= 500 ? 'failed' : 'refused';
  }
}

export function sendError(reply: FastifyReply, error: ApiError): FastifyReply {
  if (error.retryAfterSeconds !== null) reply.header('retry-after', String(error.retryAfterSeconds));
  return reply.code(error.status).send(error.body());
}

function missHeaders(answer: Answer): Record<string, string> {
  return {
    'x-moefleet-misses': String(answer.outcome.misses),
    'x-moefleet-trace-id': answer.outcome.traceIds.slice(0, MAX_HEADER_TRACES).join(','),
  };
}

function headerOf(request: FastifyRequest, name: string): string | null {
  const value = request.headers[name];
  return typeof value === 'string' ? value : null;
}
