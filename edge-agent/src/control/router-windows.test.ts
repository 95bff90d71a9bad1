import { Compression, EffectiveSpec, RouterEncoding, type RouterWindow } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { dequantise, unpackWindow } from '../engine/router-window';
import type { Step } from '../native';
import { RouterWindows, type SamplingContext } from './router-windows';
import { WindowBudget } from './window-budget';

const LAYERS = 2;
const EXPERTS = 4;
const on: SamplingContext = {
  sampling: { windowTokens: 4, bytesPerHour: 1n << 20n }, modelHash: 'ab', model: { moeLayers: [1, 2], expertBytes: [10, 20], experts: EXPERTS, topK: 2 },
  spec: () => EffectiveSpec.fromPartial({ lambda: 0.3, capacities: [3, 3] }), generation: 5,
};

function step(n: number, routerLogits: Float32Array | null = Float32Array.from({ length: LAYERS * EXPERTS }, (_, i) => n + i)): Step {
  return { step: n, token: 1, text: new Uint8Array(), startNs: 0, endNs: 0, hits: 0, misses: 0, missEvents: new Float64Array(), routerLogits: n === 0 ? null : routerLogits };
}

function sampler(first: SamplingContext | null = on) {
  const kept: RouterWindow[] = [];
  const world = { context: first, nowMs: 1_000_000, fails: false };
  const files = new Map<string, string>();
  const folder = { read: (name: string) => files.get(name) ?? null, write: (name: string, text: string) => void files.set(name, text) };
  const windows = new RouterWindows({
    context: () => world.context, nowMs: () => world.nowMs, budget: new WindowBudget(folder, createLogger('test', 'silent'), () => world.nowMs),
    keep: async (window) => {
      if (world.fails) throw new Error('disk full');
      kept.push(window);
    },
  });
  const run = async (requestId: string, tokens: number) => {
    const captured = windows.wantsRouter();
    for (let n = 0; n <= tokens; n += 1) windows.onStep(requestId, captured ? step(n) : step(n, null));
    windows.onEnd(requestId);
    await windows.idle();
  };
  return { windows, world, kept, run };
}

test('a request gives whole windows, and a rest of at least half of one', async () => {
  const { run, kept } = sampler();
  await run('a', 10);
  expect(kept.map(({ tokens }) => tokens)).toEqual([4, 4, 2]);
  expect(kept[0]).toMatchObject({ modelHash: 'ab', layers: LAYERS, experts: EXPERTS, lambda: 0.3, generation: 5n, topK: 2, moeLayers: [1, 2], expertBytes: [10n, 20n], spec: { capacities: [3, 3] }, compression: Compression.COMPRESSION_ZSTD, encoding: RouterEncoding.ROUTER_ENCODING_MASKED_BYTES });
  const logits = dequantise((await unpackWindow(kept[1]!)).rows!, EXPERTS);
  expect(logits).toHaveLength(4 * LAYERS * EXPERTS);
  expect(logits[0]).toBeCloseTo(5, 2); // the second window begins with the fifth decode step
  await run('b', 1);
  expect(kept).toHaveLength(3);
});

test('a window never spans two requests or two generations', async () => {
  const { windows, world, kept } = sampler();
  windows.onStep('a', step(1));
  windows.onStep('a', step(2));
  windows.onStep('a', step(3));
  world.context = { ...on, generation: 6 };
  windows.onStep('a', step(4));
  windows.onStep('b', step(1));
  windows.onStep('b', step(2));
  windows.onEnd('b');
  await windows.idle();
  expect(kept.map(({ tokens, generation }) => [tokens, generation])).toEqual([[3, 5n], [2, 6n]]);
});

test('the budget of any hour holds; what goes over is counted, and the next hour begins anew', async () => {
  const one = sampler();
  await one.run('a', 4);
  const bytes = one.kept[0]!.data.length;
  const { run, world, windows, kept } = sampler({ ...on, sampling: { windowTokens: 4, bytesPerHour: BigInt(bytes * 2) } });
  for (const id of ['a', 'b', 'c', 'd']) await run(id, 4);
  expect(kept).toHaveLength(2);
  expect(windows.wantsRouter()).toBe(false);
  expect(windows.counts).toEqual({ recorded: 2, dropped: 2 });
  world.nowMs += 3_600_001;
  expect(windows.wantsRouter()).toBe(true);
  await run('e', 4);
  expect(windows.counts).toEqual({ recorded: 3, dropped: 2 });
});

test('off, nothing is captured', async () => {
  const { run, kept, windows } = sampler(null);
  expect(windows.wantsRouter()).toBe(false);
  await run('a', 10);
  expect(kept).toEqual([]);
  expect(windows.counts).toEqual({ recorded: 0, dropped: 0 });
});

test('the budget of a day holds beside that of the hour', async () => {
  const one = sampler();
  await one.run('a', 4);
  const bytes = BigInt(one.kept[0]!.data.length);
  const { run, world, windows, kept } = sampler({ ...on, sampling: { windowTokens: 4, bytesPerHour: bytes * 2n, bytesPerDay: bytes * 3n } });
  for (const hour of [0, 1, 2, 3]) {
    world.nowMs = 1_000_000 + hour * 3_600_001;
    await run('a', 4);
    await run('b', 4);
  }
  expect(kept).toHaveLength(3);
  expect(windows.wantsRouter()).toBe(false);
  world.nowMs = 1_000_000 + 86_400_001;
  expect(windows.wantsRouter()).toBe(true);
});

test('a window that the disk refuses counts as dropped', async () => {
  const { run, world, windows } = sampler();
  world.fails = true;
  await run('a', 4);
  expect(windows.counts).toEqual({ recorded: 0, dropped: 1 });
});
