/** The exporter against a real Jaeger, asked through its query API. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { countDistinct, freeJaegerPorts, jaegerAddresses, queryTraces, startJaeger } from '../../../services/demo/src/jaeger';
import { until } from '../../../test/harness/ports';
import { ScriptedHost, textPieces } from '../../../test/harness/scripted-host';
import { jaegerOrSkip } from '../../../test/harness/test-fleet';
import { EngineQueueRunner } from '../engine-queue-runner';
import { MissAccount, OtlpExporter, TraceRecorder, TraceSpool } from './index';

const log = createLogger('test', 'silent');
const binary = jaegerOrSkip();
const withJaeger = binary ? test : test.skip;
let folder: string;

beforeEach(async () => { folder = await mkdtemp(join(tmpdir(), 'moefleet-jaeger-')); });
afterEach(() => rm(folder, { recursive: true, force: true }));

withJaeger('every span of a request made while Jaeger was away is in Jaeger afterwards, in traces of at most 2,000', async () => {
  const ports = await freeJaegerPorts();
  const { otlpUrl, queryUrl } = jaegerAddresses(ports);
  const account = new MissAccount();
  const spool = new TraceSpool({ folder: join(folder, 'spool'), maxBytes: 1 << 26, account, log });
  const exporter = new OtlpExporter({ endpoint: otlpUrl, spool, log, retryMaxMs: 500 });
  const recorder = new TraceRecorder({ origin: { deviceId: 'jetson-7', bootId: 'boot-1', hostName: 'jetson', version: '0.1.0' }, spool, account, log });
  const host = new ScriptedHost({ pieces: textPieces('x'.repeat(64)), misses: (step) => (step === 0 ? 600 : 48) });
  const observer = { wantsRouter: () => false, onStep: () => {}, onEnd: () => {} };
  const queue = new EngineQueueRunner({ host, recorder, observer, log, modelName: () => 'scripted-moe' });
  await spool.start();
  await exporter.start();
  const stopping: { stop(): Promise<void> }[] = [spool, exporter];
  try {
    const { misses, traceIds } = await queue.complete({
      generate: { requestId: 'req-1', prompt: Int32Array.of(1), maxTokens: 64, temperature: 0, topP: 1, seed: 0, coldCache: false, captureRouter: false },
      operation: 'chat', traceparent: null,
    }, () => {}, new AbortController().signal);
    expect([misses, traceIds.length]).toEqual([600 + 63 * 48, 2]);
    await until('the exporter has noticed that Jaeger is away', () => exporter.waitingFor);
    stopping.push(await startJaeger(binary!, join(folder, 'jaeger'), ports, false));
    await until('all spans are exported', () => recorder.account().spooled === 0);
    expect(recorder.account()).toEqual({ counted: misses, exported: misses, spooled: 0, dropped: 0, unsampled: 0 });
    const spans = await until('all spans are in Jaeger', async () => {
      const found = await queryTraces(queryUrl, traceIds);
      // The misses, 63 tokens, the prefill, the request and its continuation: Jaeger may show the last of them a moment later.
      return new Set(found.map((span) => span.spanId)).size >= misses + 63 + 3 ? found : null;
    });
    expect(countDistinct(spans, 'flash.read')).toBe(misses);
    expect([countDistinct(spans, 'prefill'), countDistinct(spans, 'token'), countDistinct(spans, 'chat scripted-moe'), countDistinct(spans, 'chat scripted-moe (continued)')]).toEqual([1, 63, 1, 1]);
    for (const traceId of traceIds) expect(spans.filter((span) => span.traceId === traceId).length).toBeLessThanOrEqual(2000);
    expect(new Set(spans.map((span) => span.attributes['moefleet.request.id']))).toEqual(new Set(['req-1']));
    const miss = spans.find((span) => span.name === 'flash.read')!;
    expect(Object.keys(miss.attributes).filter((name) => name.startsWith('moefleet.')).length).toBeGreaterThanOrEqual(11);
  } finally {
    for (const part of stopping.reverse()) await part.stop();
  }
});
