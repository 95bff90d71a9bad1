import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceSpec, Measure, type MeasureResult, SpecState, type TaskUpdate } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { EngineQueueRunner } from '../engine-queue-runner';
import type { EngineHostClient } from '../host/host-client';
import { MissAccount, TraceRecorder, TraceSpool } from '../trace';
import { DesiredApplier } from './desired-applier';
import { MeasureTasks } from './measure-task';
import { SpecStore } from './spec-store';
import { StateFolder } from './state-folder';
import { stateOf, testHost } from './testing/test-host';
import { until } from '../../../test/harness/ports';

const log = createLogger('test', 'silent');
const path = mkdtempSync(join(tmpdir(), 'moefleet-measure-'));
const text = readFileSync(join(__dirname, '..', '..', '..', 'test', 'fixtures', 'wikitext.txt'), 'utf8').slice(0, 40_000);
const prompts = ['The river rises in the hills and', 'A train left the station'];
let host: EngineHostClient;
let applier: DesiredApplier;
let tasks: MeasureTasks;
let updates: TaskUpdate[];

beforeAll(async () => {
  applier = new DesiredApplier(new SpecStore(new StateFolder(path), log), { maxCacheBytes: 3.6 * 1024 ** 2, maxLambda: 1, traceRatio: 1 }, log);
  host = testHost({ specFor: (model) => applier.specFor(model) });
  applier.follow(host);
  const account = new MissAccount();
  const spool = new TraceSpool({ folder: join(path, 'spool'), maxBytes: 1 << 24, account, log });
  await spool.start();
  const recorder = new TraceRecorder({ origin: { deviceId: 'd', bootId: 'b', hostName: 'h', version: '0' }, spool, account, log });
  const queue = new EngineQueueRunner({ host, recorder, observer: { wantsRouter: () => false, onStep: () => {}, onEnd: () => {} }, log, modelName: () => 'm' });
  tasks = new MeasureTasks({ host, queue, inForce: () => applier.inForce, send: (update) => updates.push(update), scoringBytes: () => 1 << 20, log });
  await host.start();
  await stateOf(host, 'ready');
  await until('a spec is in force', () => applier.inForce);
});
beforeEach(() => { updates = []; });
afterAll(async () => {
  await tasks.stop();
  await host.stop();
  rmSync(path, { recursive: true, force: true });
});

async function apply(generation: bigint, lambda: number): Promise<void> {
  applier.receive({ generation, bytes: Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial({ lambda, topJ: 1 })).finish()), origin: '' });
  await until('applied', () => applier.reported.state === SpecState.SPEC_STATE_APPLIED && applier.reported.generation === generation);
}

function end(taskId: string): Promise<NonNullable<TaskUpdate['state']>> {
  return until(`the end of ${taskId}`, () => updates.find((update) => update.taskId === taskId && update.state?.$case !== 'progress')?.state);
}

async function measured(taskId: string, measure: Partial<Measure>): Promise<MeasureResult> {
  tasks.begin(taskId, Measure.fromPartial({ prompts, tokensPerPrompt: 32, ...measure }));
  const state = await end(taskId);
  if (state.$case !== 'measured') throw new Error(JSON.stringify(state));
  return state.value;
}

test('measures from a cold cache, the same every time, and lambda lowers the misses at a price in nats', async () => {
  const scored = { text, textTokens: 2048, context: 256 };
  const plain = await measured('a', scored);
  expect(plain).toMatchObject({ generation: 0n, spec: { lambda: 0 }, textTokens: 2048 });
  expect(plain.crossEntropy).toBe(plain.crossEntropyLambdaZero);
  expect(plain.hits + plain.misses).toBe(plain.decodeTokens * 4n * 6n);
  expect(plain.decodeNs).toBeGreaterThan(0n);
  expect(plain.swaps).toBe(0n);
  expect(plain.prefillFlashBytes).toBeGreaterThan(0n);
  expect(plain.flashBytes).toBeGreaterThan(plain.prefillFlashBytes);
  const again = await measured('b', {});
  expect({ misses: again.misses, prefillMisses: again.prefillMisses, flashBytes: again.flashBytes }).toEqual({ misses: plain.misses, prefillMisses: plain.prefillMisses, flashBytes: plain.flashBytes });
  expect(again.crossEntropy).toBeUndefined();
  await apply(1n, 0.3);
  const bent = await measured('c', scored);
  expect(bent.misses * 10n).toBeLessThan(plain.misses * 7n);
  expect(bent.crossEntropyLambdaZero).toBeCloseTo(plain.crossEntropy!, 9);
  expect(Math.abs(bent.crossEntropy! - bent.crossEntropyLambdaZero!)).toBeGreaterThan(1e-5);
  expect(bent.windowCrossEntropy).toHaveLength(2048 / 256);
  for (const [windows, mean] of [[bent.windowCrossEntropy, bent.crossEntropy!], [bent.windowCrossEntropyLambdaZero, bent.crossEntropyLambdaZero!]] as const) {
    expect(windows.reduce((sum, each) => sum + each, 0) / windows.length).toBeCloseTo(mean, 6);
  }
  expect(bent.textMissRate).toBeLessThan(plain.textMissRate!);
  expect(bent.textSwapRate).toBeGreaterThan(0);
  const fractions = updates.filter(({ taskId, state }) => taskId === 'c' && state?.$case === 'progress').map(({ state }) => (state as { value: { fraction: number } }).value.fraction);
  expect(fractions).toEqual([...fractions].sort((a, b) => a - b));
  expect(fractions.at(-1)).toBeLessThanOrEqual(1);
});

test('nonsense is refused with the reason, and so is what does not fit the context', async () => {
  tasks.begin('d', Measure.fromPartial({ prompts: [], text: '' }));
  expect(await end('d')).toEqual({ $case: 'failed', value: { reason: expect.stringContaining('nothing to measure') } });
  tasks.begin('e', Measure.fromPartial({ prompts, tokensPerPrompt: 4096 }));
  expect(await end('e')).toEqual({ $case: 'failed', value: { reason: expect.stringMatching(/prompts\[0\].*4096.*context/) } });
});

test('cancelling ends it, one at a time is measured, and a spec that changes meanwhile spoils it', async () => {
  const long = Measure.fromPartial({ prompts, tokensPerPrompt: 400 });
  tasks.begin('f', long);
  tasks.begin('g', long);
  expect(await end('g')).toEqual({ $case: 'failed', value: { reason: expect.stringContaining('task f') } });
  await until('it is under way', () => updates.filter(({ taskId }) => taskId === 'f').length > 2);
  tasks.cancel('f');
  expect(await end('f')).toEqual({ $case: 'failed', value: { reason: 'cancelled' } });
  tasks.begin('h', Measure.fromPartial({ prompts, tokensPerPrompt: 200 }));
  await until('it is under way', () => updates.filter(({ taskId }) => taskId === 'h').length > 2);
  await apply(2n, 0.1);
  expect(await end('h')).toEqual({ $case: 'failed', value: { reason: expect.stringMatching(/generation 1 to 2/) } });
});
