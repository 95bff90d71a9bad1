import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import OpenAI, { APIUserAbortError, AuthenticationError, BadRequestError, InternalServerError, NotFoundError, RateLimitError } from 'openai';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { type Script, ScriptedHost, textPieces } from '../../../test/harness/scripted-host';
import { EngineQueueRunner } from '../engine-queue-runner';
import { MissAccount, OtlpExporter, TraceRecorder, TraceSpool } from '../trace';
import { traceIdOf } from '../trace/span-ids';
import { AgentHttp, type AgentHttpOptions, AgentMetrics } from './index';

const log = createLogger('test', 'silent');
const observer = { wantsRouter: () => false, onStep: () => {}, onEnd: () => {} };
const started: { stop(): Promise<void> }[] = [];

afterEach(async () => {
  for (const part of started.splice(0).reverse()) await part.stop();
});

async function serve(script: Partial<Script> = {}, options: Partial<AgentHttpOptions> = {}, maxWaiting = 16) {
  const folder = await mkdtemp(join(tmpdir(), 'moefleet-http-'));
  started.push({ stop: () => rm(folder, { recursive: true, force: true }) });
  const engine = new ScriptedHost(script);
  const account = new MissAccount();
  const spool = new TraceSpool({ folder, maxBytes: 1 << 24, account, log });
  const traces = new TraceRecorder({ origin: { deviceId: 'd', bootId: 'b', hostName: 'h', version: '0' }, spool, account, log });
  const queue = new EngineQueueRunner({ host: engine, recorder: traces, observer, log, modelName: () => 'scripted-moe', maxWaiting });
  const exporter = new OtlpExporter({ endpoint: null, spool, log });
  const metrics = new AgentMetrics({ host: engine, queue, traces, spool, exporter });
  const http = new AgentHttp({
    host: '127.0.0.1', port: 0, apiKey: null, engine, queue, metrics, loadModel: async () => {}, connected: () => true, log, ...options,
  });
  for (const part of [spool, queue, http]) {
    await part.start();
    started.push(part);
  }
  const client = (settings: Partial<ConstructorParameters<typeof OpenAI>[0]> = {}) => new OpenAI({ baseURL: `${http.url}/v1`, apiKey: 'unused', maxRetries: 0, ...settings });
  return { engine, queue, http, traces, client, url: http.url };
}

const model = 'scripted-moe';
const messages = [{ role: 'user' as const, content: 'hi' }];
const post = (url: string, body: unknown, headers: Record<string, string> = {}) => fetch(url, {
  method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: typeof body === 'string' ? body : JSON.stringify(body),
});

/** A request with headers that fetch does not let one set. */
function raw(url: string, headers: Record<string, string>, path = '/v1/models'): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    httpRequest(`${url}${path}`, { headers }, (response) => {
      let body = '';
      response.on('data', (chunk: Buffer) => { body += chunk.toString(); });
      response.on('end', () => resolve({ status: response.statusCode!, body }));
    }).on('error', reject).end();
  });
}

describe('the openai client', () => {
  test('lists and retrieves the model', async () => {
    const { client } = await serve();
    const models = await client().models.list();
    expect(models.data).toEqual([{ id: model, object: 'model', created: expect.any(Number) as number, owned_by: 'moefleet' }]);
    expect((await client().models.retrieve(model)).id).toBe(model);
    await expect(client().models.retrieve('other')).rejects.toThrow(NotFoundError);
  });

  test('chats', async () => {
    const { client, engine } = await serve({ misses: (step) => (step === 0 ? 3 : 1) });
    const { data, response } = await client().chat.completions.create({ model, messages, temperature: 0, seed: 5, max_completion_tokens: 50 }).withResponse();
    expect(data).toMatchObject({
      object: 'chat.completion', model, choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content: 'Hello, world.', refusal: null }, logprobs: null }],
      usage: { prompt_tokens: '<user>hi'.length, completion_tokens: 13, total_tokens: 21 },
    });
    expect(data.id).toMatch(/^chatcmpl-[0-9a-f]{24}$/);
    const requestId = response.headers.get('x-moefleet-request-id')!;
    expect(requestId).toMatch(/^req-[0-9a-f]{24}$/);
    expect([response.headers.get('x-moefleet-misses'), response.headers.get('x-moefleet-trace-id')]).toEqual(['15', traceIdOf(requestId, 0)]);
    expect((data as unknown as { moefleet: unknown }).moefleet).toMatchObject({
      request_id: requestId, misses: 15, prefill_misses: 3, decode_misses: 12, flash_bytes: 15000, tokens_per_second: 1000, trace_ids: [traceIdOf(requestId, 0)],
    });
    expect(engine.requests[0]).toMatchObject({ requestId, temperature: 0, seed: 5, maxTokens: 50, coldCache: false });
  });

  test('chats as a stream', async () => {
    const { client } = await serve({ misses: () => 2 });
    const { data, response } = await client().chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } }).withResponse();
    const chunks = [];
    for await (const chunk of data) chunks.push(chunk);
    expect(chunks[0]!.choices[0]).toMatchObject({ delta: { role: 'assistant', content: '' }, finish_reason: null });
    expect(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('')).toBe('Hello, world.');
    expect(chunks.at(-2)!.choices[0]).toMatchObject({ delta: {}, finish_reason: 'stop' });
    expect(chunks.at(-1)).toMatchObject({ object: 'chat.completion.chunk', choices: [], usage: { completion_tokens: 13 }, moefleet: { misses: 26, request_id: response.headers.get('x-moefleet-request-id') } });
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  test('chats as a stream through its helper', async () => {
    const { client } = await serve();
    const runner = client().chat.completions.stream({ model, messages });
    expect(await runner.finalContent()).toBe('Hello, world.');
  });

  test('completes a text, whole and as a stream, and from tokens', async () => {
    const { client, engine } = await serve();
    const whole = await client().completions.create({ model, prompt: 'a', max_tokens: 5 });
    expect(whole).toMatchObject({ object: 'text_completion', choices: [{ text: 'Hello', index: 0, finish_reason: 'length', logprobs: null }], usage: { prompt_tokens: 1, completion_tokens: 5, total_tokens: 6 } });
    expect(whole.id).toMatch(/^cmpl-/);
    let text = '';
    let last: unknown;
    for await (const chunk of await client().completions.create({ model, prompt: [[7, 8, 9]], stream: true })) {
      text += chunk.choices[0]!.text;
      last = chunk;
    }
    expect([text, [...engine.requests[1]!.prompt]]).toEqual(['Hello, world.', [7, 8, 9]]);
    expect(last).toMatchObject({ choices: [{ text: '', finish_reason: 'stop' }], moefleet: { misses: 0 } });
  });

  test('ends at a stop string that tokens cut, and shows nothing of it', async () => {
    const { client, engine } = await serve({ pieces: textPieces('one, two, three and on and on'.repeat(5)) });
    const answer = await client().chat.completions.create({ model, messages, stop: [', three', 'zzz'] });
    expect(answer.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: 'one, two' } });
    expect(answer.usage!.completion_tokens).toBe('one, two, three'.length);
    let streamed = '';
    for await (const chunk of await client().chat.completions.create({ model, messages, stop: ', three', stream: true })) streamed += chunk.choices[0]!.delta.content ?? '';
    expect([streamed, engine.requests.length]).toEqual(['one, two', 2]);
  });

  test('reads characters that tokens cut', async () => {
    const bytes = Buffer.from('naïve 😀 café');
    const { client } = await serve({ pieces: [...bytes].map((byte) => Uint8Array.of(byte)) });
    let streamed = '';
    for await (const chunk of await client().chat.completions.create({ model, messages, stream: true })) streamed += chunk.choices[0]!.delta.content ?? '';
    expect(streamed).toBe('naïve 😀 café');
  });

  test('gets the errors of its own classes', async () => {
    const { client } = await serve();
    const chat = client().chat.completions;
    await expect(chat.create({ model, messages, n: 2 })).rejects.toMatchObject({ status: 400, param: 'n', type: 'invalid_request_error' });
    await expect(chat.create({ model, messages, n: 2 })).rejects.toThrow(BadRequestError);
    await expect(chat.create({ model: 'gpt-4', messages })).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    await expect(chat.create({ model, messages: [{ role: 'user', content: 'x'.repeat(300) }] })).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' });
    await expect(chat.create({ model, messages, max_tokens: 250 })).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' });
    await expect(chat.create({ model, messages, stream: true, max_tokens: 250 })).rejects.toThrow(BadRequestError);
    await expect(client().completions.create({ model, prompt: [5000] })).rejects.toMatchObject({ status: 400, param: 'prompt' });
    await expect(client().completions.create({ model, prompt: '' })).rejects.toMatchObject({ status: 400, param: 'prompt' });
  });

  test('gets a 429 with Retry-After from a full queue, and its own retry then succeeds', async () => {
    let open = () => {};
    const held = new Promise<void>((resolve) => { open = resolve; });
    const { client, queue } = await serve({ beforeStep: () => held }, {}, 1);
    const first = [0, 1].map(() => client().chat.completions.create({ model, messages }));
    await until('one runs and one waits', () => queue.waiting === 1);
    const refused = await client().chat.completions.create({ model, messages }).catch((error: unknown) => error) as InstanceType<typeof RateLimitError>;
    expect(refused).toBeInstanceOf(RateLimitError);
    expect([refused.code, Number(refused.headers.get('retry-after'))]).toEqual(['queue_full', 1]);
    const patient = client({ maxRetries: 5 }).chat.completions.create({ model, messages });
    open();
    await Promise.all([...first, patient]);
  });

  test('gets a 503 with the reason while no engine is there', async () => {
    const { client, engine } = await serve();
    engine.setState({ t: 'failed', reason: 'the engine host ended with SIGABRT', retryAtMs: Date.now() + 1000 });
    const refused = await client().chat.completions.create({ model, messages }).catch((error: unknown) => error) as InstanceType<typeof InternalServerError>;
    expect(refused).toBeInstanceOf(InternalServerError);
    expect([refused.status, refused.message]).toEqual([503, expect.stringContaining('SIGABRT')]);
    expect((await client().models.list()).data).toEqual([]);
  });

  test('hears of an engine that dies while it streams', async () => {
    const { client } = await serve({ beforeStep: async (step) => { if (step === 3) throw new Error('the engine host ended'); } });
    const stream = await client().chat.completions.create({ model, messages, stream: true });
    let text = '';
    await expect((async () => { for await (const chunk of stream) text += chunk.choices[0]!.delta.content ?? ''; })()).rejects.toThrow('the engine host ended');
    expect(text).toBe('Hel');
  });

  test.each([true, false])('ends its request by going away (streaming: %s)', async (stream) => {
    const { client, engine, queue } = await serve({ pieces: textPieces('x'.repeat(100_000)), beforeStep: () => new Promise((resolve) => setTimeout(resolve, 2)) });
    const leaving = new AbortController();
    const answer = client().chat.completions.create({ model, messages, stream, max_tokens: 200 } as OpenAI.Chat.ChatCompletionCreateParamsStreaming, { signal: leaving.signal });
    await until('it runs', () => engine.concurrent === 1);
    leaving.abort();
    if (stream) await answer.then((events) => events.controller.abort(), () => {});
    else await expect(answer).rejects.toThrow(APIUserAbortError);
    await until('the engine is free', () => engine.concurrent === 0 && !queue.running);
    expect(engine.cancelled).toEqual([engine.requests[0]!.requestId]);
    expect(await client().chat.completions.create({ model, messages, max_tokens: 2 })).toMatchObject({ choices: [{ finish_reason: 'length' }] });
  });
});

describe('the server', () => {
  test('gives the misses in trailers and a done event when streaming', async () => {
    const { url } = await serve({ misses: () => 1 });
    const { text, trailers } = await new Promise<{ text: string; trailers: NodeJS.Dict<string> }>((resolve, reject) => {
      const request = httpRequest(`${url}/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' } }, (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => { text += chunk.toString(); });
        response.on('end', () => resolve({ text, trailers: response.trailers }));
      });
      request.on('error', reject).end(JSON.stringify({ messages, stream: true }));
    });
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
    expect(trailers['x-moefleet-misses']).toBe('13');
    expect(trailers['x-moefleet-trace-id']).toMatch(/^[0-9a-f]{32}$/);
  });

  test('joins the trace of the caller', async () => {
    const { url } = await serve();
    const response = await post(`${url}/v1/completions`, { prompt: 'a' }, { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' });
    expect(response.headers.get('x-moefleet-trace-id')).toBe('0af7651916cd43dd8448eb211c80319c');
  });

  test('passes cold_cache on', async () => {
    const { url, engine } = await serve();
    await post(`${url}/v1/completions`, { prompt: 'a', moefleet: { cold_cache: true } });
    expect(engine.requests[0]!.coldCache).toBe(true);
  });

  test.each<[string, string, Record<string, string>, number, string | null]>([
    ['malformed JSON', '{"messages": [', {}, 400, null],
    ['no JSON', 'hello', { 'content-type': 'text/plain' }, 415, null],
    ['an empty body', '', {}, 400, null],
    ['a list', '[]', {}, 400, null],
    ['an oversized body', JSON.stringify({ prompt: 'x'.repeat(1024 * 1024) }), {}, 413, null],
    ['a poisoned prototype', '{"__proto__": {"a": 1}, "prompt": "a"}', {}, 400, null],
  ])('refuses %s in the form clients understand', async (_, body, headers, status) => {
    const { url } = await serve();
    const response = await post(`${url}/v1/completions`, body, headers);
    const { error } = await response.json() as { error: Record<string, unknown> };
    expect([response.status, Object.keys(error).sort(), error.type]).toEqual([status, ['code', 'message', 'param', 'type'], 'invalid_request_error']);
    expect((await post(`${url}/v1/completions`, { prompt: 'a' })).status).toBe(200);
  });

  test('refuses an unknown address', async () => {
    const { url } = await serve();
    const response = await fetch(`${url}/v1/embeddings`, { method: 'POST' });
    expect([response.status, ((await response.json()) as { error: { message: string } }).error.message]).toEqual([404, 'Unknown request URL: POST /v1/embeddings']);
  });

  test('refuses foreign Host and Origin headers everywhere', async () => {
    const { url } = await serve();
    for (const path of ['/v1/models', '/healthz', '/metrics', '/nowhere']) {
      expect((await raw(url, { host: 'evil.example' }, path)).status).toBe(403);
      expect((await raw(url, { origin: 'https://evil.example' }, path)).status).toBe(403);
    }
    expect((await raw(url, { host: 'localhost', origin: 'http://localhost:5173' })).status).toBe(200);
  });

  test('asks for the key where one is set, save for health', async () => {
    const { url, client } = await serve({}, { apiKey: 'sk-local' });
    await expect(client().models.list()).rejects.toThrow(AuthenticationError);
    expect((await client({ apiKey: 'sk-local' }).models.list()).data).toHaveLength(1);
    expect([(await fetch(`${url}/metrics`)).status, (await fetch(`${url}/healthz`)).status, (await fetch(`${url}/nowhere`)).status]).toEqual([401, 200, 401]);
  });

  test('tells its health', async () => {
    let connected = false;
    const { url, engine } = await serve({}, { connected: () => connected });
    expect(await (await fetch(`${url}/healthz`)).json()).toEqual({ status: 'ok', model: { id: model, hash: 'ab'.repeat(32) }, connected: false, waiting: 0 });
    connected = true;
    engine.setState({ t: 'failed', reason: 'out of memory', retryAtMs: null });
    const response = await fetch(`${url}/healthz`);
    expect([response.status, await response.json()]).toEqual([503, { status: 'failed', reason: 'out of memory', model: null, connected: true, waiting: 0 }]);
  });

  test('exposes what engine and traces count', async () => {
    const { url, engine } = await serve({ misses: () => 2, pieces: textPieces('abc') });
    await post(`${url}/v1/completions`, { prompt: 'a' });
    await post(`${url}/v1/completions`, { prompt: 5 });
    const text = await (await fetch(`${url}/metrics`)).text();
    for (const line of [
      'moefleet_agent_ready 1', 'moefleet_agent_queue_waiting 0', 'moefleet_agent_requests_total{operation="text_completion",outcome="ok"} 1',
      'moefleet_agent_requests_total{operation="text_completion",outcome="refused"} 1', 'moefleet_agent_misses_total{phase="decode"} 8',
      'moefleet_agent_hits_total{phase="prefill"} 4', 'moefleet_agent_flash_bytes_total{phase="all"} 4096', 'moefleet_agent_tokens_total{phase="decode"} 5',
      'moefleet_agent_miss_account{place="counted"} 6', 'moefleet_agent_miss_account{place="spooled"} 6', 'moefleet_agent_request_duration_seconds_count{operation="text_completion"} 1',
      'moefleet_agent_resident_experts{layer="1"} 6',
    ]) expect(text).toContain(`${line}\n`);
    engine.setState({ t: 'stopped' });
    const without = await (await fetch(`${url}/metrics`)).text();
    expect([without.includes('moefleet_agent_misses_total'), without.includes('moefleet_agent_ready 0')]).toEqual([false, true]);
  });

  test.each<[string, unknown, Error | null, number]>([
    ['loads', { path: '/models/b.gguf' }, null, 200],
    ['refuses no path', {}, null, 400], ['refuses a path with a zero byte', { path: 'a\0b' }, null, 400],
    ['says what is wrong with the file', { path: 'x' }, Object.assign(new Error('x: not a GGUF file'), { code: 'MODEL_FORMAT' }), 400],
    ['says why it cannot now', { path: 'x' }, new Error('the engine host ended while it loaded x'), 409],
  ])('%s a model', async (_, body, failure, status) => {
    const loaded: string[] = [];
    const { url } = await serve({}, { loadModel: async (path) => { loaded.push(path); if (failure) throw failure; } });
    const response = await post(`${url}/moefleet/v1/model`, body);
    expect(response.status).toBe(status);
    const answer = await response.json() as { error?: { message: string }; model?: unknown };
    if (status === 200) expect([loaded, answer.model]).toEqual([['/models/b.gguf'], { id: model, hash: 'ab'.repeat(32) }]);
    if (failure) expect(answer.error!.message).toBe(failure.message);
  });

  test('does not make the engine wait for a client that reads slowly', async () => {
    const piece = Buffer.from('y'.repeat(64 * 1024));
    const { http, engine } = await serve({ pieces: Array.from({ length: 200 }, () => piece) });
    const socket = connect(Number(new URL(http.url).port), '127.0.0.1');
    socket.pause();
    const body = JSON.stringify({ messages, stream: true });
    socket.write(`POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    await until('the engine is done', () => engine.requests.length === 1 && engine.concurrent === 0);
    let bytes = 0;
    let tail = '';
    socket.on('data', (chunk: Buffer) => { bytes += chunk.length; tail = (tail + chunk.toString('latin1')).slice(-2000); });
    socket.resume();
    await new Promise((resolve) => socket.once('close', resolve));
    expect(bytes).toBeGreaterThan(200 * piece.length);
    expect(tail).toContain('data: [DONE]');
  });

  test('streams to an HTTP/1.0 client, which knows no trailers', async () => {
    const { http } = await serve({ pieces: textPieces('one two three ') });
    const socket = connect(Number(new URL(http.url).port), '127.0.0.1');
    const body = JSON.stringify({ messages, stream: true });
    socket.write(`POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    let answer = '';
    socket.on('data', (chunk: Buffer) => { answer += chunk.toString(); });
    await new Promise((resolve) => socket.once('close', resolve));
    expect(answer).toMatch(/^HTTP\/1\.1 200 /);
    expect(answer).toContain('"content":"o"');
    expect(answer).toContain('data: [DONE]');
  });

  test('stops in the middle of requests, which are told why', async () => {
    const { url, http, engine } = await serve({ pieces: textPieces('x'.repeat(200)), beforeStep: () => new Promise((resolve) => setTimeout(resolve, 5)) });
    const running = post(`${url}/v1/completions`, { prompt: 'a', max_tokens: 200 });
    await until('it runs', () => engine.concurrent === 1);
    await http.stop();
    const response = await running;
    expect([response.status, await response.text()]).toEqual([503, expect.stringContaining('the agent is stopping')]);
    await http.stop();
    await expect(fetch(`${url}/healthz`)).rejects.toThrow();
  });

  test('writes no prompt and no answer into its log', async () => {
    const lines: string[] = [];
    const { PassThrough } = await import('node:stream');
    const sink = new PassThrough();
    sink.on('data', (chunk: Buffer) => lines.push(chunk.toString()));
    const { default: pino } = await import('pino');
    const loud = pino({ level: 'trace' }, sink);
    const { url } = await serve({ pieces: textPieces('classified answer'), beforeStep: async (step) => { if (step === 16) throw new Error('it ended'); } }, { log: loud });
    await post(`${url}/v1/completions`, { prompt: 'classified prompt', max_tokens: 3 });
    await post(`${url}/v1/completions`, { prompt: 'classified prompt', max_tokens: 100 });
    await post(`${url}/v1/completions`, '{"prompt": "classified');
    await until('something was logged', () => lines.length >= 2);
    expect(lines.join('')).not.toContain('classified');
  });
});
