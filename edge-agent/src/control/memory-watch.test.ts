import { pino } from 'pino';
import type { HostState, LoadedModel } from '../engine-host';
import type { InForce } from './desired-applier';
import type { CacheLimit } from './effective-spec';
import type { EngineMemory } from '../native';
import { MemoryWatch } from './memory-watch';
import { testModel } from './testing/test-model';

const MIB = 2 ** 20;

/** An agent whose memory and clock a test sets; 400 MiB of experts are wanted, and held. */
function setUp() {
  const world = { nowMs: 0, availableBytes: 1000 * MIB, stall: 0, heldBytes: 400 * MIB, cacheBytes: 400 * MIB, memoryAsked: 0, scoring: false, limits: [] as (CacheLimit | null)[], held: [] as (CacheLimit | null)[] };
  const { hash, info } = testModel();
  const model = { hash, info: { ...info, tokenCycleBytes: 40 * MIB }, contextTokens: 1 } as LoadedModel;
  const host = {
    state: { t: 'ready', model } as HostState,
    memory: async () => {
      world.memoryAsked += 1;
      return { denseBytes: 0, kvBytes: 0, computeBytes: 0, cacheBytes: 0, stagingBytes: 0, prefillBytes: 0, residentBytes: world.heldBytes, untouchedBytes: 0, directIo: true };
    },
  };
  const applier = {
    get inForce() { return { effective: { cacheBytes: world.cacheBytes, wantedBytes: 400 * MIB } } as InForce; },
    wantedBytes: () => 400 * MIB,
    holdCache: (limit: CacheLimit | null) => void world.held.push(limit),
    limitCache: async (limit: CacheLimit | null) => {
      world.limits.push(limit);
      world.cacheBytes = world.heldBytes = limit?.bytes ?? 400 * MIB;
    },
  };
  const watch = new MemoryWatch({
    host, applier, policy: { lowBytes: 100 * MIB, stallPercent: 10 }, log: pino({ level: 'silent' }), now: () => world.nowMs, scoring: () => world.scoring,
    read: () => ({ availableBytes: world.availableBytes, totalBytes: 2000 * MIB, stalls: [world.stall, null] }),
  });
  const look = async (changed: Partial<typeof world> = {}, afterMs = 250) => {
    Object.assign(world, changed);
    world.nowMs += afterMs;
    await watch.look();
  };
  watch.served();
  return { world, host, model, watch, look };
}

test('asks the engine nothing while there is no pressure', async () => {
  const { world, look } = setUp();
  for (let i = 0; i < 20; i += 1) await look();
  expect(world).toMatchObject({ memoryAsked: 0, limits: [] });
});

test('holds the cache to less, says why, and lets it grow when it has been calm', async () => {
  const { world, watch, look } = setUp();
  await look({ availableBytes: 80 * MIB });
  expect(world.limits).toEqual([{ bytes: 280 * MIB, reason: expect.stringMatching(/80\.0 MiB of memory are left, below 100\.0 MiB/) as string }]);
  expect(watch.limitBytes).toBe(280 * MIB);
  for (let i = 0; i < 60; i += 1) await look({ availableBytes: 1000 * MIB }, 1000);
  expect(world.limits.slice(1).map((limit) => limit && limit.bytes / MIB)).toEqual([300, 320, 340]);
  expect(watch.counts).toEqual({ shrink: 1, grow: 3 });
});

test('what a measurement takes for a moment is no want of memory, unless little is left; nothing grows by it either', async () => {
  const { world, watch, look } = setUp();
  await look({ availableBytes: 60 * MIB, scoring: true });
  expect(world.limits).toEqual([]);
  await look({ availableBytes: 60 * MIB, scoring: false });
  expect(watch.limitBytes).toBe(280 * MIB);
  for (let i = 0; i < 60; i += 1) await look({ availableBytes: 1000 * MIB, scoring: true }, 1000);
  expect(world.limits).toHaveLength(1);
  await look({ availableBytes: 20 * MIB, scoring: true });
  expect(world.limits.at(-1)).toEqual({ bytes: 196 * MIB, reason: expect.stringMatching(/20\.0 MiB of memory are left, below 25\.0 MiB/) as string });
});

test('measures stalls over a second, from what the kernel has counted', async () => {
  const { world, look } = setUp();
  await look();
  await look({ stall: 200_000 });
  await look();
  await look();
  expect(world.limits).toEqual([]);
  await look();
  expect(world.limits).toEqual([{ bytes: 280 * MIB, reason: expect.stringMatching(/20\.0% of the time/) as string }]);
});

test('gives back what was cut while a text was scored, as soon as it has been', async () => {
  const { world, watch, look } = setUp();
  await look({ availableBytes: 20 * MIB, scoring: true });
  expect(watch.limitBytes).toBe(280 * MIB);
  await look({ availableBytes: 300 * MIB, scoring: true });
  expect(world.limits).toHaveLength(1);
  await look({ availableBytes: 300 * MIB, scoring: false });
  expect(world.limits.at(-1)).toBeNull();
  expect(watch.limitBytes).toBeNull();
});

const TAKEN: EngineMemory = { denseBytes: 0, kvBytes: 0, computeBytes: 20 * MIB, untouchedBytes: 20 * MIB, cacheBytes: 0, stagingBytes: 0, prefillBytes: 10 * MIB, residentBytes: 0, directIo: true };

test('another model begins with what there is for it', async () => {
  const { world, model, watch, look } = setUp();
  await look({ availableBytes: 80 * MIB });
  world.availableBytes = 1000 * MIB;
  watch.opened({ ...model, hash: 'another' }, TAKEN);
  expect(world.held).toEqual([null]);
  expect(watch.limitBytes).toBeNull();
});

test('a model is opened with the experts of one token where memory is tight, and gets what there is before it is used', () => {
  const { world, model, watch } = setUp();
  world.availableBytes = 300 * MIB;
  expect(watch.beforeOpen(model)).toBeGreaterThan(0);
  expect(world.held).toEqual([{ bytes: 40 * MIB, reason: expect.anything() as string }]);
  watch.opened(model, TAKEN);
  expect(watch.limitBytes).toBe(161 * MIB);
  expect(world.held.at(-1)!.bytes).toBe(161 * MIB);
  world.availableBytes = 4000 * MIB;
  expect(watch.beforeOpen(model)).toBeNull();
});

test('says what is missing for an engine, a model, its cache', () => {
  const { world, model, watch } = setUp();
  world.availableBytes = 10 * MIB;
  expect(() => watch.beforeStart()).toThrow(/engine host.*24\.0 MiB are needed, 10\.0 MiB are left of the 1\.95 GiB/);
  expect(() => watch.beforeOpen(model)).toThrow(/too little memory for .*dense weights/);
  world.availableBytes = 60 * MIB;
  expect(() => watch.opened(model, TAKEN)).toThrow(/79\.0 MiB are needed, 60\.0 MiB are left.*allow it 1\.97 GiB or more/);
});

test('without an engine there is nothing to give', async () => {
  const { world, host, look } = setUp();
  host.state = { t: 'failed', reason: 'gone', retryAtMs: null };
  await look({ availableBytes: 0 });
  expect(world).toMatchObject({ memoryAsked: 0, limits: [] });
});

test('looks by itself until it is stopped', async () => {
  const { world, watch } = setUp();
  world.availableBytes = 80 * MIB;
  await watch.start();
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      if (world.limits.length === 0) return;
      clearInterval(timer);
      resolve();
    }, 5);
  });
  await watch.stop();
  await watch.stop();
});
