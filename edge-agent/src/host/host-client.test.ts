import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeAbortingModel } from '../control/testing/aborting-model';
import { generate, plainSpec, REFERENCE_MODEL, stateOf, testHost } from '../control/testing/test-host';
import { HostUnavailableError, type HostState } from '../engine-host';
import type { EngineHostClient } from './host-client';

const folder = mkdtempSync(join(tmpdir(), 'moefleet-host-'));
let host: EngineHostClient;
afterEach(() => host?.stop());
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test('loads, generates step by step in order, counts, and leaves no process behind', async () => {
  host = testHost();
  await host.start();
  expect(host.state.t).toBe('loading');
  await expect(host.tokenize('x', true, false)).rejects.toThrow(HostUnavailableError);
  const { model } = await stateOf(host, 'ready');
  expect(model).toMatchObject({ hash: expect.stringMatching(/^[0-9a-f]{64}$/), contextTokens: model.info.contextTrain, info: { experts: 32, topK: 4 } });
  const steps: number[] = [];
  const result = await generate(host, 12, (step) => steps.push(step.step), { captureRouter: true });
  expect(result.completionTokens).toBe(12);
  expect(steps).toEqual(steps.map((_, i) => i));
  const counters = await host.counters();
  expect(counters!.missesTotal).toBe(result.prefillMisses + result.decodeMisses);
  expect((await host.memory())!.cacheBytes).toBeGreaterThan(0);
  expect(await host.applyChatTemplate([{ role: 'user', content: 'hello' }])).toContain('hello');
  const pid = host.pid!;
  await host.stop();
  expect(alive(pid)).toBe(false);
  expect(host.crashes).toBe(0);
  expect(await host.counters()).toBeNull();
});

test('an engine\'s error keeps its code and message, and the host', async () => {
  host = testHost();
  await host.start();
  await stateOf(host, 'ready');
  await expect(host.apply(plainSpec(99))).rejects.toMatchObject({ code: expect.stringMatching(/CAPACITY|BAD_ARGUMENT/), message: expect.stringContaining('99') });
  await host.apply(plainSpec(16, 0.3));
  await host.dropCache();
  expect(host.state.t).toBe('ready');
});

test('aborting ends a generation and an evaluation', async () => {
  host = testHost();
  await host.start();
  await stateOf(host, 'ready');
  const abort = new AbortController();
  const result = await generate(host, 240, (step) => step.step === 5 && abort.abort(new Error('enough')), {}, abort.signal);
  expect(result.finishReason).toBe('cancelled');
  const tokens = await host.tokenize('The river rises in the hills. '.repeat(800), false, false);
  const evaluation = new AbortController();
  const count = Math.floor((tokens.length - 1) / 64) * 64;
  await expect(host.evaluate({ tokens: tokens.slice(0, count + 1), context: 64, spec: plainSpec(), stepped: false }, () => evaluation.abort(new Error('enough')), evaluation.signal)).rejects.toThrow();
  expect((await generate(host, 4)).completionTokens).toBe(4);
});

test.each(['SIGSEGV', 'SIGABRT', 'SIGKILL'] as const)('%s during a generation fails it with the reason; the host comes back and works', async (signal) => {
  host = testHost();
  const states: HostState[] = [];
  host.onStateChange((state) => states.push(state));
  await host.start();
  await stateOf(host, 'ready');
  const failed = generate(host, 240, (step) => step.step === 3 && process.kill(host.pid!, signal));
  await expect(failed).rejects.toThrow(HostUnavailableError);
  await expect(failed).rejects.toMatchObject({ retryable: true, message: expect.stringContaining(signal) });
  await stateOf(host, 'ready');
  expect(states.map(({ t }) => t)).toEqual(['loading', 'ready', 'failed', 'loading', 'ready']);
  expect(states[2]).toMatchObject({ reason: expect.stringContaining(signal), retryAtMs: expect.any(Number) });
  expect({ crashes: host.crashes, starts: host.starts }).toEqual({ crashes: 1, starts: 2 });
  expect((await generate(host, 4)).completionTokens).toBe(4);
});

test('the spec is asked for again at every start', async () => {
  let lambda = 0;
  host = testHost({ specFor: () => plainSpec(8, (lambda += 0.1)) });
  await host.start();
  await stateOf(host, 'ready');
  process.kill(host.pid!, 'SIGKILL');
  await stateOf(host, 'failed');
  await stateOf(host, 'ready');
  expect(lambda).toBeCloseTo(0.2);
});

test('another model that is none disturbs nothing; one that is takes its place', async () => {
  const proven: string[] = [];
  host = testHost({ onModelProven: (path) => proven.push(path) });
  await host.start();
  await stateOf(host, 'ready');
  const bad = join(folder, 'bad.gguf');
  writeFileSync(bad, 'this is no model');
  const pid = host.pid;
  await expect(host.load(bad)).rejects.toThrow(/bad\.gguf/);
  await expect(host.load(join(folder, 'none.gguf'))).rejects.toThrow(/none\.gguf/);
  expect(host.pid).toBe(pid);
  await host.load(REFERENCE_MODEL);
  expect(host.pid).not.toBe(pid);
  expect((await generate(host, 4)).completionTokens).toBe(4);
  expect(new Set(proven)).toEqual(new Set([REFERENCE_MODEL]));
});

test('a model that crashes the host twice before its first token gives way to the one that was loaded', async () => {
  host = testHost();
  await host.start();
  await stateOf(host, 'ready');
  const other = join(folder, 'other.gguf');
  copyFileSync(REFERENCE_MODEL, other);
  await host.load(other);
  for (let crash = 1; crash <= 2; crash += 1) {
    expect((await stateOf(host, 'ready')).model.info.path).toBe(other);
    const gone = new Promise<void>((resolve) => { const off = host.onCrash(() => { off(); resolve(); }); });
    process.kill(host.pid!, 'SIGABRT');
    await gone;
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect((await stateOf(host, 'ready')).model.info.path).toBe(REFERENCE_MODEL);
  expect(host.lastTrouble).toMatch(/SIGABRT.*went back to/);
  expect((await generate(host, 4)).completionTokens).toBe(4);
});

test('a model that makes llama.cpp abort takes down the host only: the one before serves again, and the assertion is told', async () => {
  host = testHost();
  await host.start();
  await stateOf(host, 'ready');
  const aborting = join(folder, 'aborting.gguf');
  writeAbortingModel(REFERENCE_MODEL, aborting);
  await expect(host.load(aborting)).rejects.toThrow(/SIGABRT.*GGML_ASSERT/);
  expect(host.state).toMatchObject({ t: 'ready' });
  expect((await stateOf(host, 'ready')).model.info.path).toBe(REFERENCE_MODEL);
  expect(host.crashes).toBe(2);
  expect(host.lastTrouble).toMatch(/GGML_ASSERT.*went back to/);
  expect((await generate(host, 4)).completionTokens).toBe(4);
});

test('a model that cannot be loaded at the start gives way to the last good one, else the reason stands', async () => {
  const bad = join(folder, 'start.gguf');
  writeFileSync(bad, 'this is no model');
  host = testHost({ modelPath: bad, lastGoodModelPath: REFERENCE_MODEL });
  await host.start();
  expect((await stateOf(host, 'ready')).model.info.path).toBe(REFERENCE_MODEL);
  expect(host.lastTrouble).toMatch(/start\.gguf.*went back/);
  await host.stop();
  host = testHost({ modelPath: bad });
  await host.start();
  expect(await stateOf(host, 'failed')).toMatchObject({ reason: expect.stringContaining('start.gguf'), retryAtMs: null });
  await host.load(REFERENCE_MODEL);
  expect(host.state.t).toBe('ready');
});

test('stopping while another model takes its place leaves no process behind', async () => {
  host = testHost();
  await host.start();
  await stateOf(host, 'ready');
  const other = join(folder, 'stopped.gguf');
  copyFileSync(REFERENCE_MODEL, other);
  const loading = host.load(other);
  const refused = expect(loading).rejects.toThrow(HostUnavailableError);
  const { pid } = host;
  // The old engine has been asked to go and the new one is not there yet.
  while (host.pid === pid) await new Promise((resolve) => setImmediate(resolve));
  expect(host.pid).toBeNull();
  await host.stop();
  await refused;
  while (alive(pid!)) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect({ state: host.state.t, pid: host.pid }).toEqual({ state: 'stopped', pid: null });
});

test('a model asked for while a refused one is put away is loaded, once', async () => {
  const bad = join(folder, 'refused.gguf');
  writeFileSync(bad, 'this is no model');
  host = testHost({ modelPath: bad });
  await host.start();
  while (host.lastTrouble === '') await new Promise((resolve) => setImmediate(resolve));
  expect(host.state.t).toBe('loading');
  await host.load(REFERENCE_MODEL);
  expect(host.state).toMatchObject({ t: 'ready', model: { info: { path: REFERENCE_MODEL } } });
  expect(host.starts).toBe(2);
});
