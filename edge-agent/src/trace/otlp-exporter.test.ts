import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { ACCEPT, OtlpCollector, partialSuccess } from '../../../test/harness/otlp-collector';
import { ScriptedHost, textPieces } from '../../../test/harness/scripted-host';
import { EngineQueueRunner } from '../engine-queue-runner';
import { MissAccount } from './miss-account';
import { OtlpExporter, readRetryAfter } from './otlp-exporter';
import { TraceRecorder } from './trace-recorder';
import { TraceSpool } from './trace-spool';

const log = createLogger('test', 'silent');
const observer = { wantsRouter: () => false, onStep: () => {}, onEnd: () => {} };
const started: { stop(): Promise<void> }[] = [];
let folder: string;
let collector: OtlpCollector;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'moefleet-spool-'));
  collector = new OtlpCollector();
  await collector.start();
});

afterEach(async () => {
  for (const part of started.splice(0).reverse()) await part.stop();
  await collector.stop();
  await rm(folder, { recursive: true, force: true });
});

/** The trace side of one boot of an agent, on the same folder as the boot before. */
async function boot(options: { maxBytes?: number; exporting?: boolean; endpoint?: string | null; ratio?: number; misses?: (step: number) => number; lostEvents?: (step: number) => number } = {}) {
  const account = new MissAccount();
  const spool = new TraceSpool({ folder, maxBytes: options.maxBytes ?? 1 << 26, account, log });
  await spool.start();
  started.push(spool);
  const host = new ScriptedHost({ pieces: textPieces('x'.repeat(64)), misses: options.misses ?? (() => 5), lostEvents: options.lostEvents ?? (() => 0) });
  const recorder = new TraceRecorder({ origin: { deviceId: 'd', bootId: `boot-${Math.random()}`, hostName: 'h', version: '0' }, spool, account, log, traceRatio: options.ratio ?? 1 });
  const queue = new EngineQueueRunner({ host, recorder, observer, log, modelName: () => 'm' });
  const endpoint = options.endpoint === undefined ? collector.url : options.endpoint;
  const exporter = new OtlpExporter({ endpoint, spool, log, retryBaseMs: 5, retryMaxMs: 20, timeoutMs: 2000 });
  if (options.exporting ?? true) {
    await exporter.start();
    started.push(exporter);
  }
  let count = 0;
  const request = () => queue.complete({
    generate: { requestId: `req-${count += 1}`, prompt: Int32Array.of(1), maxTokens: 64, temperature: 0, topP: 1, seed: 0, coldCache: false, captureRouter: false },
    operation: 'chat', traceparent: null,
  }, () => {}, new AbortController().signal);
  return { account, spool, host, recorder, exporter, request, endpoint };
}

const flashReads = () => new Set(collector.spans.filter(({ name }) => name === 'flash.read').map(({ spanId }) => spanId)).size;

/** Ends this boot's parts, as a restart of the agent does. */
async function shutDown() {
  for (const part of started.splice(0).reverse()) await part.stop();
}

test('every miss arrives at the collector, once', async () => {
  const { request, recorder, host } = await boot();
  const { misses } = await request();
  await until('all spans are exported', () => recorder.account().spooled === 0);
  expect([flashReads(), host.missNumber, recorder.account()]).toEqual([misses, misses, { counted: misses, exported: misses, spooled: 0, dropped: 0, unsampled: 0 }]);
  expect(collector.spans.length).toBe(new Set(collector.spans.map(({ spanId }) => spanId)).size);
  expect(await readdir(folder)).toEqual([]);
});

test('what is made while the collector is away arrives when it is back', async () => {
  await collector.stop();
  const { request, recorder, exporter } = await boot();
  const { misses } = await request();
  await until('the exporter has noticed', () => exporter.waitingFor);
  expect(recorder.account()).toMatchObject({ counted: misses, spooled: misses });
  await collector.start();
  await until('all spans are exported', () => recorder.account().spooled === 0);
  expect([flashReads(), exporter.waitingFor]).toEqual([misses, null]);
});

test.each([429, 502, 503, 504])('tries again after HTTP %i', async (status) => {
  collector.verdict = (request) => (request <= 3 ? { status, headers: { 'retry-after': '0' } } : ACCEPT);
  const { request, recorder } = await boot();
  const { misses } = await request();
  await until('all spans are exported', () => recorder.account().exported === misses);
  expect(flashReads()).toBe(misses);
});

test('waits as long as Retry-After says', async () => {
  collector.verdict = (request) => (request === 1 ? { status: 503, headers: { 'retry-after': '1' } } : ACCEPT);
  const { request, recorder } = await boot();
  const begunMs = performance.now();
  await request();
  await until('all spans are exported', () => recorder.account().spooled === 0);
  expect(performance.now() - begunMs).toBeGreaterThanOrEqual(1000);
});

test.each<[string | null, number | null]>([
  ['3', 3000], ['0', 0], ['-5', 0], ['99999', 300_000], ['Thu, 01 Jan 1970 00:00:12 GMT', 2000], ['soon', null], ['', null], [null, null],
])('reads the Retry-After %s', (header, waitMs) => expect(readRetryAfter(header, 10_000)).toBe(waitMs));

test.each([400, 401, 404, 413, 500])('drops and counts what is refused with HTTP %i, and goes on', async (status) => {
  collector.verdict = (request) => (request === 1 ? { status } : ACCEPT);
  const { request, recorder, spool } = await boot();
  const { misses } = await request();
  await until('the spool is empty', () => spool.batches === 0);
  const account = recorder.account();
  expect(account.dropped).toBeGreaterThan(0);
  expect(account).toEqual({ counted: misses, exported: flashReads(), spooled: 0, dropped: misses - flashReads(), unsampled: 0 });
});

test('counts what a collector took in part', async () => {
  collector.verdict = (request) => ({ ...ACCEPT, body: request === 1 ? partialSuccess(7) : new Uint8Array() });
  const { request, recorder, exporter, spool } = await boot();
  const { misses } = await request();
  await until('the spool is empty', () => spool.batches === 0);
  expect(recorder.account()).toEqual({ counted: misses, exported: misses - 7, spooled: 0, dropped: 7, unsampled: 0 });
  expect([exporter.exportedSpans, spool.droppedSpans]).toEqual([collector.spans.length - 7, 7]);
});

test('takes a success whose body is no protobuf for a success', async () => {
  collector.verdict = () => ({ status: 200, body: Buffer.from('ok, thanks') });
  const { request, recorder } = await boot();
  const { misses } = await request();
  await until('all spans are exported', () => recorder.account().exported === misses);
});

test('keeps the newest within its bound and counts what it drops', async () => {
  await collector.stop();
  const { request, recorder, spool, exporter } = await boot({ maxBytes: 300_000 });
  for (let count = 0; count < 8; count += 1) await request();
  await exporter.stop();
  await spool.flushed();
  const account = recorder.account();
  expect(spool.bytes).toBeLessThanOrEqual(300_000);
  expect(account.dropped).toBeGreaterThan(0);
  expect(account.counted).toBe(account.spooled + account.dropped);
  const numbers = (await readdir(folder)).map((name) => Number(name.slice(0, 12)));
  expect(numbers.length).toBe(spool.batches);
  // All but the oldest, which may be the one that was being sent when others had to go, are the newest without a gap.
  const newest = numbers.sort((a, b) => a - b).slice(1);
  expect(newest.at(-1)! - newest[0]!).toBe(newest.length - 1);
});

test('a batch larger than the bound is dropped and counted', async () => {
  const { request, recorder, spool } = await boot({ maxBytes: 100, exporting: false });
  const { misses } = await request();
  expect([recorder.account(), spool.batches]).toEqual([{ counted: misses, exported: 0, spooled: 0, dropped: misses, unsampled: 0 }, 0]);
});

test('a restart takes up the spool, in order, after what was left', async () => {
  const first = await boot({ endpoint: null });
  const { misses } = await first.request();
  await shutDown();
  await writeFile(join(folder, '000000000099-9m-9s.otlp.tmp'), 'half a batch');
  await writeFile(join(folder, 'notes.txt'), 'not ours');
  const second = await boot({ exporting: false });
  expect(second.account.inheritedMisses).toBe(misses);
  expect(second.recorder.account()).toEqual({ counted: misses, exported: 0, spooled: misses, dropped: 0, unsampled: 0 });
  const more = (await second.request()).misses;
  await second.exporter.start();
  started.push(second.exporter);
  await until('all spans are exported', () => second.recorder.account().spooled === 0);
  expect([flashReads(), second.recorder.account().exported]).toEqual([misses + more, misses + more]);
  expect(collector.spans.at(-1)!.attributes['moefleet.request.id']).toBe('req-1');
  expect(await readdir(folder)).toEqual(['notes.txt']);
});

test.each<[string, (file: string) => Promise<void>]>([
  ['cut short', (file) => truncate(file, 1000)], ['empty', (file) => truncate(file, 0)], ['gone', (file) => rm(file)], ['overwritten', (file) => writeFile(file, Buffer.alloc(5000, 7))],
])('a batch whose file is %s counts as dropped and holds up nothing', async (_, damage) => {
  const first = await boot({ exporting: false });
  const { misses } = await first.request();
  await shutDown();
  const file = (await readdir(folder)).sort()[0]!;
  const lost = Number(/-(\d+)m-/.exec(file)![1]);
  const second = await boot({ exporting: false });
  await damage(join(folder, file));
  await second.exporter.start();
  started.push(second.exporter);
  await until('the spool is empty', () => second.spool.batches === 0);
  expect(second.recorder.account()).toEqual({ counted: misses, exported: misses - lost, spooled: 0, dropped: lost, unsampled: 0 });
  expect(flashReads()).toBe(misses - lost);
});

test('without an endpoint the spans stay', async () => {
  const { request, recorder } = await boot({ endpoint: null });
  const { misses } = await request();
  expect(recorder.account()).toMatchObject({ spooled: misses, exported: 0 });
});

test('a disk that cannot be written to costs the batches, counted, and nothing else', async () => {
  const { request, recorder, spool } = await boot({ exporting: false });
  await rm(folder, { recursive: true });
  const { misses } = await request();
  await spool.flushed();
  expect([recorder.account(), spool.batches, spool.bytes]).toEqual([{ counted: misses, exported: 0, spooled: 0, dropped: misses, unsampled: 0 }, 0, 0]);
});

test('stops at once while a collector does not answer, and loses nothing', async () => {
  let asked = false;
  collector.verdict = () => { asked = true; return { status: 503, headers: { 'retry-after': '60' } }; };
  const { request, recorder } = await boot();
  const { misses } = await request();
  await until('it was asked', () => asked);
  const begunMs = performance.now();
  await shutDown();
  expect(performance.now() - begunMs).toBeLessThan(2000);
  expect(recorder.account().spooled).toBe(misses);
});

test('counted = exported + spooled + dropped + unsampled, whatever happens', async () => {
  let seed = 3;
  const random = () => { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; return seed / 2 ** 32; };
  collector.verdict = () => {
    const dice = random();
    if (dice < 0.3) return { status: 503 };
    if (dice < 0.4) return { status: 400 };
    if (dice < 0.5) return { ...ACCEPT, body: partialSuccess(1 + Math.floor(random() * 100)) };
    return ACCEPT;
  };
  const { request, recorder, spool } = await boot({
    maxBytes: 400_000, misses: () => 3 + Math.floor(random() * 20), lostEvents: () => (random() < 0.1 ? 3 : 0),
  });
  let told = 0;
  for (let round = 0; round < 30; round += 1) {
    recorder.setTraceRatio(random() < 0.3 ? 0 : 1);
    told += (await request()).misses;
    const { counted, exported, spooled, dropped, unsampled } = recorder.account();
    expect(counted).toBe(exported + spooled + dropped + unsampled);
    expect(counted).toBe(told);
    expect(Math.min(exported, spooled, dropped, unsampled)).toBeGreaterThanOrEqual(0);
  }
  await until('the spool is empty', () => spool.batches === 0);
  const account = recorder.account();
  expect(account.spooled).toBe(0);
  expect(account.unsampled).toBeGreaterThan(0);
  expect(account.dropped).toBeGreaterThan(0);
  // A rejected span of a batch taken in part is kept by this collector all the same.
  expect(account.exported).toBeLessThanOrEqual(flashReads());
});
