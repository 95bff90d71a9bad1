import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../test/harness/ports';
import { type Script, ScriptedHost, textPieces } from '../../test/harness/scripted-host';
import { HostUnavailableError } from './engine-host';
import { AnswerComplete, type CompletionJob, QueueFullError } from './engine-queue';
import { EngineQueueRunner } from './engine-queue-runner';
import type { Step } from './native';
import { MissAccount } from './trace/miss-account';
import { TraceRecorder } from './trace/trace-recorder';
import { TraceSpool } from './trace/trace-spool';

const log = createLogger('test', 'silent');
const never = new AbortController().signal;
let folder: string;
let spool: TraceSpool;

beforeEach(async () => { folder = await mkdtemp(join(tmpdir(), 'moefleet-queue-')); });
afterEach(async () => {
  await spool.stop();
  await rm(folder, { recursive: true, force: true });
});

async function setUp(script: Partial<Script>, wantsRouter = false) {
  const host = new ScriptedHost(script);
  const account = new MissAccount();
  spool = new TraceSpool({ folder, maxBytes: 1 << 20, account, log });
  await spool.start();
  const recorder = new TraceRecorder({ origin: { deviceId: 'd', bootId: 'b', hostName: 'h', version: '0' }, spool, account, log });
  const seen: string[] = [];
  const observer = {
    wantsRouter: () => wantsRouter,
    onStep: (requestId: string, step: Step) => { seen.push(`${requestId} ${step.step}`); },
    onEnd: (requestId: string) => { seen.push(`${requestId} end`); },
  };
  const queue = new EngineQueueRunner({ host, recorder, observer, log, modelName: () => 'm', maxWaiting: 2 });
  return { host, queue, recorder, seen };
}

function job(requestId: string): CompletionJob {
  return {
    generate: { requestId, prompt: Int32Array.of(1), maxTokens: 100, temperature: 0, topP: 1, seed: 1, coldCache: false, captureRouter: false },
    operation: 'chat', traceparent: null,
  };
}

/** Requests stand still before their first step until they are let go. */
function gate() {
  const open = new Map<string, () => void>();
  return {
    beforeStep: (step: number, requestId: string) => (step === 0 ? new Promise<void>((resolve) => open.set(requestId, resolve)) : Promise.resolve()),
    open: async (requestId: string) => (await until(`${requestId} has begun`, () => open.get(requestId)))(),
    begun: (requestId: string) => open.has(requestId),
  };
}

test('runs one at a time, in order, and refuses past its bound', async () => {
  const { beforeStep, open, begun } = gate();
  const { host, queue } = await setUp({ beforeStep });
  const ended: string[] = [];
  const run = (id: string) => queue.complete(job(id), () => {}, never).then(() => ended.push(id));
  const all = ['a', 'b', 'c'].map(run);
  expect(queue.waiting).toBe(2);
  await expect(run('d')).rejects.toThrow(QueueFullError);
  for (const id of ['a', 'b', 'c']) {
    await open(id);
    if (id === 'a') expect(begun('b')).toBe(false);
  }
  await Promise.all(all);
  expect([ended, host.mostConcurrent, queue.waiting, queue.running]).toEqual([['a', 'b', 'c'], 1, 0, false]);
});

test('an aborted request leaves the queue without reaching the engine', async () => {
  const { beforeStep, open } = gate();
  const { host, queue } = await setUp({ beforeStep });
  const first = queue.complete(job('a'), () => {}, never);
  const leaving = new AbortController();
  const second = queue.complete(job('b'), () => {}, leaving.signal);
  leaving.abort(new Error('gone'));
  await expect(second).rejects.toThrow('gone');
  expect(queue.waiting).toBe(0);
  await open('a');
  await first;
  expect(host.requests.map(({ requestId }) => requestId)).toEqual(['a']);
  await expect(queue.complete(job('c'), () => {}, leaving.signal)).rejects.toThrow('gone');
});

test.each([['cancelled', new Error('gone')], ['stop', new AnswerComplete()]])('an abort while it runs ends it as %s', async (finishReason, reason) => {
  const { queue, recorder } = await setUp({ pieces: textPieces('x'.repeat(1000)), misses: () => 2 });
  const cut = new AbortController();
  const { result, misses } = await queue.complete(job('a'), (step) => { if (step.step === 3) cut.abort(reason); }, cut.signal);
  expect(result.finishReason).toBe(finishReason);
  expect(misses).toBe(result.prefillMisses + result.decodeMisses);
  expect(recorder.account()).toMatchObject({ counted: misses, spooled: misses });
});

test('exclusive work and completions share the engine', async () => {
  const { host, queue } = await setUp({});
  let during = -1;
  const work = queue.exclusive(async () => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    during = host.requests.length;
    return 7;
  }, never);
  const completion = queue.complete(job('a'), () => {}, never);
  expect(await work).toBe(7);
  await completion;
  expect(during).toBe(0);
});

test('shows every step to the observer, then the end, and captures when it asks', async () => {
  const { host, queue, seen } = await setUp({ pieces: textPieces('ab') }, true);
  await queue.complete(job('a'), () => {}, never);
  expect(seen).toEqual(['a 0', 'a 1', 'a end']);
  expect(host.requests[0]!.captureRouter).toBe(true);
});

test('a host that dies fails the request, keeps the account and serves the next', async () => {
  let dies = true;
  const { queue, recorder, seen } = await setUp({
    misses: () => 3,
    beforeStep: async (step) => { if (step === 2 && dies) throw new HostUnavailableError('the engine host ended', true); },
  });
  await expect(queue.complete(job('a'), () => {}, never)).rejects.toThrow('the engine host ended');
  expect(recorder.account()).toEqual({ counted: 6, exported: 0, spooled: 6, dropped: 0, unsampled: 0 });
  expect(seen.at(-1)).toBe('a end');
  dies = false;
  await queue.complete(job('b'), () => {}, never);
  expect(queue.requests).toEqual({ ended: 2, failed: 1 });
});

test('refuses while no engine is there, with the reason', async () => {
  const { host, queue } = await setUp({});
  host.setState({ t: 'failed', reason: 'model.gguf: not a GGUF file', retryAtMs: null });
  const refused = await queue.complete(job('a'), () => {}, never).catch((error: unknown) => error);
  expect(refused).toMatchObject({ name: 'HostUnavailableError', message: 'model.gguf: not a GGUF file', retryable: false });
});

test('a listener that throws harms neither the request nor the account', async () => {
  const { queue, recorder } = await setUp({ pieces: textPieces('ab'), misses: () => 1 });
  const { misses } = await queue.complete(job('a'), () => { throw new Error('listener'); }, never);
  expect([misses, recorder.account().spooled]).toEqual([2, 2]);
});

test('stop refuses those that wait and waits for the one that runs', async () => {
  const { beforeStep, open } = gate();
  const { queue } = await setUp({ beforeStep });
  const first = queue.complete(job('a'), () => {}, never);
  const second = queue.complete(job('b'), () => {}, never);
  const stopping = queue.stop();
  await expect(second).rejects.toThrow('the agent is stopping');
  await open('a');
  expect((await first).result.finishReason).toBe('cancelled');
  await stopping;
  await queue.stop();
  await expect(queue.complete(job('c'), () => {}, never)).rejects.toThrow('the agent is stopping');
});
