/**
 * The device's HTTP server: OpenAI's endpoints, health, metrics and the loading of another model. Its parts are
 * injected; it opens no socket before `start`.
 */
import type { AddressInfo } from 'node:net';
import { hostname } from 'node:os';
import fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { Logger, Service } from '@moefleet/runtime';
import { type EngineHost, HostUnavailableError } from '../engine-host';
import type { EngineQueue } from '../engine-queue';
import type { AgentMetrics } from './agent-metrics';
import { ApiError, badRequest, toApiError } from './api-error';
import { CompletionEndpoint, sendError } from './completion-endpoint';
import { checkModel, modelIdOf, readyModel } from './model-id';
import { isWildcard, RequestGuard } from './request-guard';

const BODY_LIMIT_BYTES = 1024 * 1024;
/** Time to send a request's head and body; the answer may take longer. */
const REQUEST_TIMEOUT_MS = 30_000;
const STOP_GRACE_MS = 3000;

export interface AgentHttpOptions {
  /** address to listen on; loopback unless the device's owner says otherwise */
  host: string;
  /** 0: any free one */
  port: number;
  /** further names this machine goes by, for the Host and Origin check */
  allowedHosts?: readonly string[];
  /** null: none is asked for */
  apiKey: string | null;
  engine: EngineHost;
  queue: EngineQueue;
  metrics: AgentMetrics;
  /** rejects with the engine's error where the model cannot be loaded; the last good one then serves on */
  loadModel: (path: string) => Promise<void>;
  /** whether the stream to the coordinator is up */
  connected: () => boolean;
  log: Logger;
}

export class AgentHttp implements Service {
  readonly name = 'HTTP server';
  private readonly guard: RequestGuard;
  private readonly completions: CompletionEndpoint;
  private app: FastifyInstance | null = null;
  private address: AddressInfo | null = null;

  constructor(private readonly options: AgentHttpOptions) {
    this.guard = new RequestGuard({ boundHost: options.host, allowedHosts: options.allowedHosts ?? [], apiKey: options.apiKey });
    this.completions = new CompletionEndpoint(options);
  }

  /** Base address without a final slash; valid once started. */
  get url(): string {
    const { host } = this.options;
    const name = isWildcard(host) ? hostname() : host.includes(':') ? `[${host}]` : host;
    return `http://${name}:${this.address?.port ?? this.options.port}`;
  }

  /** Throws where the address is taken or not this machine's. */
  async start(): Promise<void> {
    const { host, port, apiKey, log } = this.options;
    const app = fastify({ bodyLimit: BODY_LIMIT_BYTES, requestTimeout: REQUEST_TIMEOUT_MS, forceCloseConnections: true, logger: false });
    this.app = app;
    // Only JSON: a page of another site may send text/plain without asking first.
    app.removeContentTypeParser('text/plain');
    app.addHook('onRequest', async (request) => {
      this.guard.checkSite(request.headers);
      if (request.routeOptions.url !== '/healthz') this.guard.checkKey(request.headers);
    });
    app.setErrorHandler((error, _request, reply) => sendError(reply, this.errorOf(error)));
    app.setNotFoundHandler((request, reply) => sendError(reply, new ApiError(404, 'not_found_error', `Unknown request URL: ${request.method} ${request.url.slice(0, 200)}`, null, 'unknown_url')));
    this.addRoutes(app);
    await app.listen({ host, port });
    this.address = app.server.address() as AddressInfo;
    if (apiKey === null && !isLoopback(host)) {
      log.warn({ host }, 'HTTP is open to the network without an API key; set one or bind to 127.0.0.1');
    }
  }

  async stop(): Promise<void> {
    const { app } = this;
    this.app = null;
    if (!app) return;
    app.server.close();
    await this.completions.stop(new HostUnavailableError('the agent is stopping', true), STOP_GRACE_MS);
    await app.close();
  }

  private addRoutes(app: FastifyInstance): void {
    app.get('/v1/models', async () => ({ object: 'list', data: this.models() }));
    app.get<{ Params: { '*': string } }>('/v1/models/*', async (request) => {
      checkModel(readyModel(this.options.engine), request.params['*']);
      return this.models()[0];
    });
    app.post('/v1/chat/completions', this.completions.chat);
    app.post('/v1/completions', this.completions.text);
    app.get('/healthz', async (_request, reply) => this.health(reply));
    app.get('/metrics', async (_request, reply) => reply.type(this.options.metrics.contentType).send(await this.options.metrics.text()));
    app.post('/moefleet/v1/model', async (request) => this.load(request));
  }

  /** The loaded model, or none. */
  private models() {
    const { state } = this.options.engine;
    if (state.t !== 'ready') return [];
    return [{ id: modelIdOf(state.model), object: 'model', created: STARTED_SECONDS, owned_by: 'moefleet' }];
  }

  private health(reply: FastifyReply): FastifyReply {
    const { engine, connected, queue } = this.options;
    const common = { connected: connected(), waiting: queue.waiting };
    const { state } = engine;
    if (state.t === 'ready') {
      return reply.send({ status: 'ok', model: { id: modelIdOf(state.model), hash: state.model.hash }, ...common });
    }
    const reason = state.t === 'failed' ? state.reason : state.t === 'loading' ? 'the model is being loaded' : 'no model is loaded';
    return reply.code(503).send({ status: state.t, reason, model: null, ...common });
  }

  private async load(request: FastifyRequest): Promise<unknown> {
    const path: unknown = (request.body as { path?: unknown } | null)?.path;
    if (typeof path !== 'string' || path === '' || path.includes('\0')) {
      throw badRequest('path', 'path: expected the path of a GGUF file on this device');
    }
    try {
      await this.options.loadModel(path);
    } catch (error) {
      throw loadError(error);
    }
    const model = readyModel(this.options.engine);
    return { model: { id: modelIdOf(model), hash: model.hash } };
  }

  private errorOf(error: unknown): ApiError {
    const { statusCode, code, message } = error as Partial<FastifyError>;
    if (error instanceof ApiError || statusCode === undefined || statusCode >= 500) {
      const refusal = toApiError(error, this.completions.retryAfterSeconds);
      if (refusal.status === 500) this.options.log.error({ err: error }, 'HTTP request failed');
      return refusal;
    }
    const shown = statusCode === 413 ? `the body is larger than ${BODY_LIMIT_BYTES} bytes` : message ?? 'the request makes no sense';
    return new ApiError(statusCode, 'invalid_request_error', shown, null, code === undefined ? null : code.toLowerCase());
  }
}

const STARTED_SECONDS = Math.floor(Date.now() / 1000);

/** 400 where the file is at fault, 409 where it could not be loaded now. */
function loadError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const code = (error as { code?: unknown } | null)?.code;
  const atFault = ['MODEL_FORMAT', 'NOT_MOE', 'IO', 'BAD_ARGUMENT', 'CAPACITY', 'ENOENT', 'EACCES', 'EISDIR'];
  if (typeof code === 'string' && atFault.includes(code)) return badRequest('path', message, code.toLowerCase());
  return new ApiError(409, 'invalid_request_error', message, 'path', 'model_not_loaded');
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}
