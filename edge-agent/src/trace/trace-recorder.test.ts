import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { type CollectedSpan, readSpans } from '../../../test/harness/otlp-collector';
import { type GenerateResult, MISS_EVENT, MISS_EVENT_FIELDS, type Step } from '../native';
import { MissAccount } from './miss-account';
import type { TraceLimits } from './request-trace';
import { missSpanId, traceIdOf } from './span-ids';
import { TraceRecorder } from './trace-recorder';
import { TraceSpool } from './trace-spool';

const log = createLogger('test', 'silent');
/** a monotonic reading and the wall time of the same moment, neither of which fits 53 bits as nanoseconds since 1970 */
const NOW_NS = 8_123_456_789_012_345n;
const WALL_MS = 1_790_000_000_123;
let folder: string;

beforeEach(async () => { folder = await mkdtemp(join(tmpdir(), 'moefleet-trace-')); });
afterEach(() => rm(folder, { recursive: true, force: true }));

async function setUp(traceRatio = 1, limits?: TraceLimits) {
  const account = new MissAccount();
  const spool = new TraceSpool({ folder, maxBytes: 1 << 28, account, log });
  await spool.start();
  const time = { monotonicNs: () => NOW_NS, wallMs: () => WALL_MS };
  const origin = { deviceId: 'device-1', bootId: 'boot-1', hostName: 'jetson', version: '1.2.3' };
  return { account, spool, recorder: new TraceRecorder({ origin, spool, account, log, traceRatio, time, limits }) };
}

function begin(recorder: TraceRecorder, requestId: string, traceparent: string | null = null) {
  return recorder.begin({
    generate: { requestId, prompt: Int32Array.of(5, 6), maxTokens: 9, temperature: 0.5, topP: 0.9, seed: 4, coldCache: true, captureRouter: false },
    operation: 'chat', traceparent, queuedNs: NOW_NS - 2_000_000n, model: { name: 'tiny', hash: 'ff' }, hostStart: 2,
  });
}

let missNumber = 0;

function step(index: number, misses: number, lost = 0): Step {
  const missEvents = new Float64Array((misses - lost) * MISS_EVENT_FIELDS);
  for (let at = 0; at < missEvents.length; at += MISS_EVENT_FIELDS) {
    missNumber += 1;
    missEvents.set([missNumber, index, 3, 17, 61440, Number(NOW_NS) + 1001, Number(NOW_NS) + 2003, 40, 50, 9, 1, 0.25, 12, 3], at);
  }
  return { step: index, token: 1, text: Buffer.from('secret'), startNs: Number(NOW_NS) + 1000, endNs: Number(NOW_NS) + 3000, hits: 8, misses, missEvents, routerLogits: null };
}

function result(prefillMisses: number, decodeMisses: number): GenerateResult {
  return {
    promptTokens: 2, completionTokens: 3, finishReason: 'length', prefillNs: 1, decodeNs: 2, prefillHits: 4, prefillMisses, decodeHits: 5, decodeMisses,
    decodeSwaps: 6, decodeDropped: 0, flashBytes: 7, flashReads: 8, stallNs: 9, missEventsDropped: 0, peakExpertBytes: 0,
  };
}

/** Everything in the spool, as a collector would read it. */
async function drain(spool: TraceSpool): Promise<{ spans: CollectedSpan[]; batches: number[] }> {
  const spans: CollectedSpan[] = [];
  const batches: number[] = [];
  for (let taken = await spool.take(); taken; taken = await spool.take()) {
    const read = readSpans(Buffer.from(taken.body));
    spans.push(...read);
    batches.push(read.length);
    spool.settle(taken.batch, 0, 0);
  }
  await spool.flushed();
  return { spans, batches };
}

test('a request, its steps and its misses, with every attribute', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 2));
  recorded.step(step(1, 1));
  const first = missNumber - 2;
  expect(recorded.end({ t: 'ended', result: result(2, 1) })).toEqual({ misses: 3, traceIds: [traceIdOf('req-1', 0)] });
  const { spans } = await drain(spool);
  expect(spans.map(({ name }) => name).sort()).toEqual(['chat tiny', 'flash.read', 'flash.read', 'flash.read', 'prefill', 'token']);
  const root = spans.find(({ name }) => name === 'chat tiny')!;
  const prefill = spans.find(({ name }) => name === 'prefill')!;
  const miss = spans.find(({ name, parentSpanId }) => name === 'flash.read' && parentSpanId === prefill.spanId)!;
  expect(new Set(spans.map(({ traceId }) => traceId))).toEqual(new Set([traceIdOf('req-1', 0)]));
  expect([root.parentSpanId, prefill.parentSpanId, root.kind, root.statusCode]).toEqual(['', root.spanId, 2, 0]);
  expect(root.resource).toEqual({
    'service.name': 'moefleet-agent', 'service.version': '1.2.3', 'service.instance.id': 'boot-1', 'host.name': 'jetson', 'moefleet.device.id': 'device-1',
  });
  expect(root.attributes).toEqual({
    'moefleet.request.id': 'req-1', 'gen_ai.operation.name': 'chat', 'gen_ai.provider.name': 'moefleet', 'gen_ai.request.model': 'tiny', 'gen_ai.response.model': 'tiny',
    'gen_ai.request.max_tokens': 9, 'gen_ai.request.temperature': 0.5, 'gen_ai.request.top_p': 0.9, 'gen_ai.request.seed': 4, 'gen_ai.response.id': 'req-1',
    'gen_ai.response.finish_reasons': ['length'], 'gen_ai.usage.input_tokens': 2, 'gen_ai.usage.output_tokens': 3, 'moefleet.model.hash': 'ff',
    'moefleet.request.cold_cache': true, 'moefleet.request.queue_ns': 2_000_000, 'moefleet.trace.part': 0, 'moefleet.trace.parts': 1, 'moefleet.misses': 3,
    'moefleet.hits': 9, 'moefleet.swaps': 6, 'moefleet.flash.bytes': 7, 'moefleet.stall_ns': 9, 'moefleet.miss_events_dropped': 0,
  });
  expect(miss.spanId).toBe(missSpanId('boot-1', 2, first));
  expect(miss.attributes).toEqual({
    'moefleet.request.id': 'req-1', 'moefleet.layer': 3, 'moefleet.expert': 17, 'moefleet.bytes': 61440, 'moefleet.queue_wait_ns': 40, 'moefleet.stall_ns': 50,
    'moefleet.prefetch': 'late', 'moefleet.evicted_expert': 9, 'moefleet.lambda': 0.25, 'moefleet.generation': 12, 'moefleet.miss_number': first, 'moefleet.reads': 3,
  });
  expect(JSON.stringify(spans, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))).not.toContain('secret');
});

test('a prefill that comes in parts has a span for each, and each its own misses', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 2));
  recorded.step(step(0, 3));
  recorded.step(step(1, 1));
  recorded.end({ t: 'ended', result: result(5, 1) });
  const { spans } = await drain(spool);
  const missesOf = (name: string) => {
    const found = spans.filter((span) => span.name === name);
    expect(found).toHaveLength(1);
    return spans.filter(({ parentSpanId }) => parentSpanId === found[0]!.spanId).length;
  };
  expect([missesOf('prefill'), missesOf('prefill (continued)'), missesOf('token')]).toEqual([2, 3, 1]);
  expect(new Set(spans.map(({ spanId }) => spanId)).size).toBe(spans.length);
});

test('keeps nanoseconds of times since 1970', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 1));
  recorded.end({ t: 'ended', result: result(1, 0) });
  const { spans } = await drain(spool);
  const wallNs = BigInt(WALL_MS) * 1_000_000n;
  const of = (name: string) => spans.find((span) => span.name === name)!;
  expect([of('flash.read').startNs - wallNs, of('flash.read').endNs - wallNs]).toEqual([1001n, 2003n]);
  expect([of('prefill').startNs - wallNs, of('prefill').endNs - wallNs]).toEqual([1000n, 3000n]);
  expect(of('chat tiny').startNs - wallNs).toBe(-2_000_000n);
});

test('continues in linked traces of at most 2,000 spans, steps unsplit, in batches of at most 512', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  const misses = [5000, ...Array.from({ length: 40 }, () => 190)];
  misses.forEach((count, index) => recorded.step(step(index, count)));
  const total = misses.reduce((sum, count) => sum + count, 0);
  const { traceIds } = recorded.end({ t: 'ended', result: result(5000, total - 5000) });
  const { spans, batches } = await drain(spool);
  expect(Math.max(...batches)).toBeLessThanOrEqual(512);
  expect(new Set(spans.filter(({ name }) => name === 'flash.read').map(({ spanId }) => spanId)).size).toBe(total);
  const root = spans.find(({ name }) => name === 'chat tiny')!;
  expect(root.attributes['moefleet.trace.parts']).toBe(traceIds.length);
  expect(new Set(spans.map(({ traceId }) => traceId))).toEqual(new Set(traceIds));
  for (const traceId of traceIds) {
    const part = spans.filter((span) => span.traceId === traceId);
    expect(part.length).toBeLessThanOrEqual(2000);
    const ids = new Set(part.map(({ spanId }) => spanId));
    const roots = part.filter(({ parentSpanId }) => parentSpanId === '');
    expect(roots).toHaveLength(1);
    for (const span of part) if (span !== roots[0]) expect(ids).toContain(span.parentSpanId);
    if (traceId === root.traceId) continue;
    expect([roots[0]!.name, roots[0]!.links]).toEqual(['chat tiny (continued)', [{ traceId: root.traceId, spanId: root.spanId }]]);
  }
  const prefills = spans.filter(({ name }) => name.startsWith('prefill'));
  expect(prefills.map(({ name }) => name)).toEqual(['prefill', 'prefill (continued)', 'prefill (continued)']);
  expect(spans.filter(({ name }) => name === 'token')).toHaveLength(40);
  for (const span of spans) expect(span.attributes['moefleet.request.id']).toBe('req-1');
});

test('joins the trace of a caller that sampled it, whatever the ratio', async () => {
  const { recorder, spool } = await setUp(0);
  const recorded = begin(recorder, 'req-1', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
  recorded.step(step(0, 1));
  expect(recorded.end({ t: 'ended', result: result(1, 0) }).traceIds).toEqual(['0af7651916cd43dd8448eb211c80319c']);
  const { spans } = await drain(spool);
  expect(spans.find(({ name }) => name === 'chat tiny')).toMatchObject({ traceId: '0af7651916cd43dd8448eb211c80319c', parentSpanId: 'b7ad6b7169203331' });
});

test('an unsampled request makes no span and its misses are accounted for', async () => {
  const { recorder, spool } = await setUp(0);
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 3));
  expect(recorded.end({ t: 'ended', result: result(3, 0) })).toEqual({ misses: 3, traceIds: [] });
  expect([spool.batches, recorder.lastTrace(), recorder.account()]).toEqual([0, null, { counted: 3, exported: 0, spooled: 0, dropped: 0, unsampled: 3 }]);
});

test('misses whose event was lost count as dropped', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 5, 2));
  expect(recorded.end({ t: 'ended', result: { ...result(5, 0), missEventsDropped: 2 } }).misses).toBe(5);
  expect(recorder.account()).toEqual({ counted: 5, exported: 0, spooled: 3, dropped: 2, unsampled: 0 });
  await spool.flushed();
});

test('a failed request keeps what it had, marked as an error', async () => {
  const { recorder, spool } = await setUp();
  const recorded = begin(recorder, 'req-1');
  recorded.step(step(0, 2));
  recorded.end({ t: 'failed', errorType: 'HostUnavailableError', message: 'the engine host ended' });
  const { spans } = await drain(spool);
  const root = spans.find(({ name }) => name === 'chat tiny')!;
  expect([root.statusCode, root.attributes['error.type'], spans.length]).toEqual([2, 'HostUnavailableError', 4]);
});

test('reports the latest sampled request', async () => {
  const { recorder, spool } = await setUp();
  for (const requestId of ['req-1', 'req-2']) {
    const recorded = begin(recorder, requestId);
    recorded.step(step(0, 1));
    recorded.end({ t: 'ended', result: result(1, 0) });
  }
  recorder.setTraceRatio(0);
  begin(recorder, 'req-3').end({ t: 'ended', result: result(0, 0) });
  expect(recorder.lastTrace()).toEqual({ requestId: 'req-2', traceIds: [traceIdOf('req-2', 0)], misses: 1, timeMs: WALL_MS });
  await spool.flushed();
});

test('the events have the fields the spans read', () => {
  expect(Object.values(MISS_EVENT).sort((a, b) => a - b)).toEqual(Array.from({ length: MISS_EVENT_FIELDS }, (_, index) => index));
});
