import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  BadArgumentError, bytesOfCapacities, CapacityError, Engine, EngineBusyError, EngineCancelledError, EngineClosedError, EngineIoError, engineVersion,
  type GenerateRequest, inspectModel, MISS_EVENT, MISS_EVENT_FIELDS, ModelFormatError, modelHash, type RoutingSpec, type Step, widenModel,
} from './index';

const FIXTURES = join(__dirname, '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
const folder = mkdtempSync(join(tmpdir(), 'moefleet-engine-'));
let engine: Engine;

const specOf = (lambda: number, capacity: number): RoutingSpec =>
  ({ routing: 'cache_prior', lambda, topJ: 2, capacities: Array.from({ length: 6 }, () => capacity), generation: 3 });

const openModel = (modelPath = MODEL, spec = specOf(0, 8)): Promise<Engine> =>
  Engine.open({ modelPath, contextTokens: 0, threads: 1, lanes: 2, directIo: true, prefillBytes: 0, keepAll: false, spec });

const requestOf = (over: Partial<GenerateRequest> = {}): GenerateRequest => ({
  requestId: 'r1', prompt: engine.tokenize('The city was founded in', false, false), maxTokens: 24, temperature: 0, topP: 1, seed: 1,
  coldCache: true, captureRouter: false, ...over,
});

beforeAll(async () => { engine = await openModel(); });
afterAll(async () => {
  await engine.close();
  rmSync(folder, { recursive: true, force: true });
});

test('describes the model and its memory', async () => {
  expect(engineVersion()).toMatch(/^v\d+\.\d+\.\d+ \w+/);
  const info = engine.info();
  expect(info).toMatchObject({ architecture: 'qwen2moe', experts: 32, topK: 4, moeLayers: [0, 1, 2, 3, 4, 5], selectBy: 'logits', normalisesWeights: false });
  expect(await inspectModel(MODEL)).toEqual(info);
  const memory = engine.memory();
  expect(memory.cacheBytes).toBe(bytesOfCapacities(info, engine.spec().capacities));
  expect(memory.denseBytes).toBe(info.denseBytes);
  expect(memory.kvBytes).toBeGreaterThan(0);
  expect(memory.computeBytes).toBeGreaterThan(0);
});

test('hands out every step in order, with all of its misses', async () => {
  const steps: Step[] = [];
  const request = requestOf({ captureRouter: true });
  const result = await engine.generate(request, (step) => steps.push(step));
  expect(steps.map((step) => step.step)).toEqual(Array.from({ length: 24 }, (_, i) => i));
  expect(result).toMatchObject({ promptTokens: request.prompt.length, completionTokens: 24, finishReason: 'length', missEventsDropped: 0 });
  let events = 0;
  for (const step of steps) {
    expect(step.missEvents.length).toBe(step.misses * MISS_EVENT_FIELDS);
    expect(step.routerLogits?.length ?? 0).toBe(step.step === 0 ? 0 : 6 * 32);
    for (let at = 0; at < step.missEvents.length; at += MISS_EVENT_FIELDS, events += 1) {
      expect(step.missEvents[at + MISS_EVENT.step]).toBe(step.step);
      expect(step.missEvents[at + MISS_EVENT.generation]).toBe(3);
      expect(step.missEvents[at + MISS_EVENT.endNs]).toBeGreaterThanOrEqual(step.missEvents[at + MISS_EVENT.startNs]!);
    }
  }
  expect(events).toBe(result.prefillMisses + result.decodeMisses);
  expect(engine.counters().missesTotal).toBe(steps.at(-1)!.missEvents.at(-MISS_EVENT_FIELDS + MISS_EVENT.missNumber) ?? engine.counters().missesTotal);
  const text = Buffer.concat(steps.map((step) => step.text)).toString('utf8');
  expect(Buffer.from(engine.detokenize(Int32Array.from(steps.map((step) => step.token)))).toString('utf8')).toBe(text);
});

test('samples reproducibly from a seed', async () => {
  const run = async (seed: number) => {
    const tokens: number[] = [];
    await engine.generate(requestOf({ temperature: 1.2, topP: 0.95, seed }), (step) => tokens.push(step.token));
    return tokens.join(' ');
  };
  const first = await run(7);
  expect(await run(7)).toBe(first);
  expect(await run(8)).not.toBe(first);
});

test('brings a spec into force in the middle of a generation', async () => {
  await engine.apply(specOf(0, 8));
  const lambdas: number[] = [];
  let applied: Promise<void> | undefined;
  await engine.generate(requestOf({ maxTokens: 300 }), (step) => {
    if (step.missEvents.length > 0) lambdas.push(step.missEvents[MISS_EVENT.lambda]!);
    if (step.step === 5) applied = engine.apply(specOf(0.2, 8));
  });
  await applied;
  expect(lambdas[0]).toBe(0);
  expect(lambdas.at(-1)).toBe(0.2);
  expect(engine.spec()).toEqual({
    ...specOf(0.2, 8), lambdas: null, topJs: null, maxRank: 0, massThreshold: 0, rank: 0, seed: 0, firstBiasedLayer: 0, biasPrefill: false,
    eviction: 'adaptive', evictionHalfLifeTokens: 0, prefetch: 'off',
  });
});

test('runs one request at a time and cancels it', async () => {
  const aborter = new AbortController();
  const running = engine.generate(requestOf({ maxTokens: 400 }), () => {}, aborter.signal);
  await expect(engine.generate(requestOf({ requestId: 'r2' }), () => {})).rejects.toThrow(EngineBusyError);
  expect(engine.cancel('r2')).toBe(false);
  aborter.abort();
  expect((await running).finishReason).toBe('cancelled');
  await expect(engine.generate(requestOf(), () => {}, aborter.signal)).rejects.toThrow(EngineCancelledError);

  const evaluating = new AbortController();
  const tokens = new Int32Array(256 * 64 + 1).fill(5);
  const evaluation = engine.evaluate({ tokens, context: 256, spec: specOf(0, 8), stepped: false }, () => {}, evaluating.signal);
  evaluating.abort();
  await expect(evaluation).rejects.toThrow(EngineCancelledError);
});

test('rejects with what a callback threw', async () => {
  await expect(engine.generate(requestOf({ maxTokens: 400 }), (step) => {
    if (step.step === 2) throw new RangeError('the consumer failed');
  })).rejects.toThrow(RangeError);
  expect((await engine.generate(requestOf(), () => {})).completionTokens).toBe(24);
});

test('tells what it reads to score a text apart from what it reads for its misses', async () => {
  const tokens = engine.tokenize(readFileSync(join(FIXTURES, 'wikitext.txt'), 'utf8').slice(0, 20000), false, false).slice(0, 513);
  const { expertBytes } = engine.info();
  const read = () => {
    const { flashBytes, evaluationBytes, layers } = engine.counters();
    return { flashBytes, evaluationBytes, missBytes: layers.reduce((sum, { misses, prefillMisses }, i) => sum + (misses + prefillMisses) * expertBytes[i]!, 0) };
  };
  const before = read();
  await engine.evaluate({ tokens, context: 256, spec: specOf(0.1, 8), stepped: false });
  const scored = read();
  await engine.generate(requestOf(), () => {});
  const after = read();
  expect(scored.evaluationBytes).toBeGreaterThan(before.evaluationBytes);
  expect(scored.flashBytes - before.flashBytes).toBe(scored.evaluationBytes - before.evaluationBytes);
  expect(scored.missBytes).toBe(before.missBytes);
  expect(after.missBytes).toBeGreaterThan(scored.missBytes);
  expect(after.flashBytes - scored.flashBytes).toBe(after.missBytes - scored.missBytes);
  expect(after.evaluationBytes).toBe(scored.evaluationBytes);
});

test('scores a text in whole windows', async () => {
  const text = readFileSync(join(FIXTURES, 'wikitext.txt'), 'utf8').slice(0, 20000);
  const tokens = engine.tokenize(text, false, false).slice(0, 1025);
  const progress: number[] = [];
  const result = await engine.evaluate({ tokens, context: 256, spec: specOf(0.1, 16), stepped: false }, (done) => progress.push(done));
  expect(progress).toEqual([256, 512, 768, 1024]);
  expect(result).toMatchObject({ tokens: 1024, hits: expect.any(Number), perLayer: expect.any(Array) });
  expect(result.hits + result.misses).toBe(1024 * 6 * 4);
  expect(result.tokenNll.length).toBe(1024);
  expect(result.tokenNll.reduce((sum, nll) => sum + nll, 0) / 1024).toBeCloseTo(result.crossEntropy, 4);
  expect(result.windows.map(({ hits, misses }) => hits + misses)).toEqual(new Array(4).fill(256 * 6 * 4));
  expect(result.windows.reduce((sum, { nll }) => sum + nll, 0) / 1024).toBeCloseTo(result.crossEntropy, 6);
  expect(result.windows.every(({ rangeMeans }) => rangeMeans.length === 6 && rangeMeans.every((mean) => mean > 0))).toBe(true);
  expect(result.routes).toBeNull();
  await expect(engine.evaluate({ tokens: tokens.slice(0, 1000), context: 256, spec: specOf(0, 8), stepped: false })).rejects.toThrow(BadArgumentError);
});

test('scores what follows a prompt, and records the routes of both', async () => {
  const text = readFileSync(join(FIXTURES, 'wikitext.txt'), 'utf8').slice(0, 20000);
  const request = { tokens: engine.tokenize(text, false, false).slice(0, 513), context: 256, stepped: false, promptTokens: 192, recordRoutes: true };
  const [own, bent] = [await engine.evaluate({ ...request, spec: specOf(0, 16) }), await engine.evaluate({ ...request, spec: specOf(0.3, 16) })];
  for (const result of [own, bent]) {
    expect([result.tokens, result.tokenNll.length, result.hits + result.misses]).toEqual([128, 128, 128 * 6 * 4]);
    expect(result.promptHits + result.promptMisses).toBeGreaterThan(0);
    expect(result.routes).toHaveLength(512 * 6 * 4);
  }
  // The first layer sees the same inputs, whatever was routed before.
  const firstLayer = ({ routes }: typeof own, token: number) => [...routes!.slice(token * 24, token * 24 + 4)];
  for (let token = 0; token < 192; token += 1) expect(firstLayer(bent, token)).toEqual(firstLayer(own, token));
  expect(bent.swapRate).toBeGreaterThan(0);
  expect(bent.routes).not.toEqual(own.routes);
  await expect(engine.evaluate({ ...request, promptTokens: 256, spec: specOf(0, 16) })).rejects.toThrow(BadArgumentError);
});

test('takes every routing method and eviction policy, and says what is in force', async () => {
  const spec: Required<RoutingSpec> = {
    ...specOf(0.2, 8), routing: 'sensitivity', lambdas: [0, 0.1, 0.2, 0.3, 0.4, 0.5], topJs: [0, 1, 2, 3, 4, 0], maxRank: 9, massThreshold: 0.75, rank: 3,
    seed: 2 ** 40, firstBiasedLayer: 2, biasPrefill: true, eviction: 'lfru', evictionHalfLifeTokens: 64.5, prefetch: 'auto',
  };
  await engine.apply(spec);
  expect(engine.spec()).toEqual(spec);
  const tokens = engine.tokenize(readFileSync(join(FIXTURES, 'wikitext.txt'), 'utf8').slice(0, 4000), false, false).slice(0, 513);
  const score = (over: Partial<RoutingSpec>) => engine.evaluate({ tokens, context: 256, spec: { ...specOf(0, 8), ...over }, stepped: false });
  const [own, byRank, byMass, pruned, random, lfu] = [
    await score({}), await score({ routing: 'max_rank', maxRank: 12 }), await score({ routing: 'cumulative_threshold', massThreshold: 0.8 }),
    await score({ routing: 'pruned' }), await score({ routing: 'sensitivity', rank: 4, seed: 1 }), await score({ eviction: 'lfu' }),
  ];
  for (const bent of [byRank, byMass, pruned]) expect(bent.missRate).toBeLessThan(own.missRate);
  expect([own.dropRate, random.swapRate]).toEqual([0, 0.25]);
  expect(pruned.hits + pruned.misses).toBe(Math.round(512 * 6 * 4 * (1 - pruned.dropRate)));
  expect(pruned.perLayer.some((layer) => layer.dropRate > 0)).toBe(true);
  expect(lfu.crossEntropy).toBe(own.crossEntropy);
  expect(lfu.misses).not.toBe(own.misses);
  await engine.apply(specOf(0, 8));
});

test('refuses malformed values instead of crashing', async () => {
  await expect(engine.apply(specOf(Number.NaN, 8))).rejects.toThrow(BadArgumentError);
  await expect(engine.apply(specOf(0, 3))).rejects.toThrow(CapacityError);
  const wrong = [undefined, null, 5, 'x', {}, [], { ...specOf(0, 8), routing: 'other' }, { ...specOf(0, 8), capacities: ['4'] },
    { ...specOf(0, 8), capacities: Array(6).fill(1e20) }, { ...specOf(0, 8), topJ: 1.5 },
    { ...specOf(0, 8), lambdas: [0.1] }, { ...specOf(0, 8), lambdas: 'x' }, { ...specOf(0, 8), topJs: [1.5, 1, 1, 1, 1, 1] }, { ...specOf(0, 8), eviction: 'fifo' },
    { ...specOf(0, 8), seed: -1 }, { ...specOf(0, 8), biasPrefill: 1 }, { ...specOf(0, 8), routing: 'max_rank' }, { ...specOf(0, 8), evictionHalfLifeTokens: -1 },
    { get routing(): string { throw new Error('trap'); } }];
  for (const spec of wrong) await expect(engine.apply(spec as never)).rejects.toThrow(BadArgumentError);
  for (const request of [undefined, {}, { ...requestOf(), prompt: [1, 2] }, { ...requestOf(), prompt: new Float32Array(3) }, { ...requestOf(), maxTokens: -1 },
    { ...requestOf(), prompt: new Int32Array(0) }, { ...requestOf(), prompt: Int32Array.of(4096) }, { ...requestOf(), seed: Number.NaN }]) {
    await expect(engine.generate(request as never, () => {})).rejects.toThrow(BadArgumentError);
  }
  expect(() => engine.detokenize([1] as never)).toThrow(BadArgumentError);
  expect(() => engine.detokenize(Int32Array.of(-5))).toThrow(BadArgumentError);
  expect(() => engine.tokenize(7 as never, false, false)).toThrow(BadArgumentError);
  expect(() => engine.applyChatTemplate([{ role: 'user' }] as never)).toThrow(BadArgumentError);
  await expect(Engine.open({} as never)).rejects.toThrow(BadArgumentError);
});

test('formats a conversation without a template plainly', () => {
  expect(engine.chatTemplate()).toBeNull();
  expect(engine.applyChatTemplate([{ role: 'user', content: 'Hello' }])).toBe('user: Hello\n\nassistant:');
});

test('tells bad files apart', async () => {
  await expect(inspectModel(join(folder, 'absent'))).rejects.toThrow(EngineIoError);
  await expect(inspectModel(join(FIXTURES, 'math.txt'))).rejects.toThrow(ModelFormatError);
  const short = join(folder, 'short.gguf');
  writeFileSync(short, readFileSync(MODEL).subarray(0, 9_000_000));
  await expect(openModel(short)).rejects.toThrow(/truncated/);
});

test('identifies a model by its header and the heads of its tensors', async () => {
  const hash = await modelHash(MODEL);
  expect(hash).toMatch(/^[0-9a-f]{64}$/);
  expect(await modelHash(engine.info())).toBe(hash);
  const copy = join(folder, 'copy.gguf');
  const bytes = readFileSync(MODEL);
  writeFileSync(copy, bytes);
  expect(await modelHash(copy)).toBe(hash);
  bytes[engine.info().tensors[3]!.offset]! ^= 1;
  writeFileSync(copy, bytes);
  expect(await modelHash(copy)).not.toBe(hash);
});

test('widens a model without changing its text', async () => {
  const wide = join(folder, 'wide.gguf');
  const { bytes } = await widenModel(MODEL, wide, { width: 256 });
  expect((await inspectModel(wide))).toMatchObject({ fileBytes: bytes, alignment: 4096 });
  await expect(widenModel(MODEL, wide, { width: 256 })).rejects.toThrow(BadArgumentError);
  await engine.apply(specOf(0, 8));
  const text = async (each: Engine) => {
    const parts: Uint8Array[] = [];
    await each.generate(requestOf(), (step) => parts.push(step.text));
    return Buffer.concat(parts).toString('utf8');
  };
  const widened = await openModel(wide);
  expect(await text(widened)).toBe(await text(engine));
  await widened.close();
});

test('answers CLOSED after close, which may be called twice and during a request', async () => {
  const other = await openModel();
  const running = other.generate(requestOf({ maxTokens: 400 }), () => {});
  await Promise.all([other.close(), other.close()]);
  expect((await running).finishReason).toBe('cancelled');
  expect(() => other.info()).toThrow(EngineClosedError);
  await expect(other.generate(requestOf(), () => {})).rejects.toThrow(EngineClosedError);
  await other.close();
});

test.each(['open', 'generate', 'evaluate', 'idle'])('lets the process exit in the middle of: %s', (when) => {
  const script = `
    const addon = require(${JSON.stringify(join(__dirname, '..', '..', 'native', 'build', 'moefleet_engine.node'))});
    const spec = ${JSON.stringify(specOf(0.1, 8))};
    const options = { modelPath: ${JSON.stringify(MODEL)}, contextTokens: 0, threads: 1, lanes: 2, directIo: true, prefillBytes: 0, keepAll: false, spec };
    const request = { requestId: 'x', prompt: Int32Array.of(5, 6), maxTokens: 400, temperature: 0, topP: 1, seed: 1, coldCache: true, captureRouter: true };
    const opened = addon.open(options);
    if (${JSON.stringify(when)} === 'open') process.exit(7);
    opened.then((e) => {
      if (${JSON.stringify(when)} === 'generate') addon.generate(e, request, (s) => { if (s.step === 3) process.exit(7); });
      if (${JSON.stringify(when)} === 'evaluate') addon.evaluate(e, { tokens: new Int32Array(25601).fill(5), context: 256, spec, stepped: true }, () => process.exit(7));
      if (${JSON.stringify(when)} === 'idle') process.exit(7);
    });`;
  const child = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
  expect({ status: child.status, signal: child.signal, stderr: child.stderr }).toEqual({ status: 7, signal: null, stderr: '' });
});
