/** Counting exactly once, against a real Redis: what was counted equals what the devices counted, whatever happens on the way. */
import { LayerCounters, TelemetryFrame } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import fc from 'fast-check';
import { Redis } from 'ioredis';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { startClusterRedis } from '../testing/cluster-redis';
import { randomPrefix } from '../testing/test-coordinator';
import { RedisLink } from './redis-link';
import { Registry } from './registry';
import { type CountedFrame, HISTORY_STEP_MS } from './telemetry-store';

const log = createLogger('test', 'silent');
let redis: TestRedis;
let raw: Redis;
let prefix: string;
let links: RedisLink[];
let a: Registry;
let b: Registry;

beforeAll(async () => {
  redis = await startRedis();
  raw = new Redis(redis.url);
});
afterAll(async () => {
  raw.disconnect();
  await redis.close();
});
beforeEach(async () => {
  prefix = randomPrefix();
  const open = (coordinatorId: string) => {
    const link = new RedisLink({ url: redis.url, cluster: false }, log);
    return [link, new Registry(link, { prefix, coordinatorId }, log)] as const;
  };
  const [first, second] = [open('a'), open('b')];
  links = [first[0], second[0]];
  [a, b] = [first[1], second[1]];
  await Promise.all(links.map((link) => link.start()));
});
afterEach(() => Promise.all(links.map((link) => link.stop())));

interface Counts { deviceId?: string; bootId?: string; sequence: number; tokens: number; misses?: number; model?: string; class?: string }

function frame({ deviceId = 'd', bootId = 'boot', sequence, tokens, misses = 0, model = 'm', class: className = 'phone' }: Counts): CountedFrame {
  return {
    deviceId, bootId, model, class: className,
    frame: TelemetryFrame.fromPartial({ sequence: BigInt(sequence), decodeTokens: BigInt(tokens), decodeSlots: { hits: BigInt(tokens * 4 - misses), misses: BigInt(misses), swaps: 0n } }),
  };
}

const tokens = async () => Number((await a.telemetry.sums()).all.decodeTokens);

test('counts what is new in a frame, and a frame that comes again not at all', async () => {
  expect(await a.telemetry.count([frame({ sequence: 1, tokens: 10 })])).toEqual(['counted']);
  expect(await a.telemetry.count([frame({ sequence: 2, tokens: 25, misses: 7 })])).toEqual(['counted']);
  expect(await b.telemetry.count([frame({ sequence: 2, tokens: 25, misses: 7 })])).toEqual(['duplicate']);
  expect(await b.telemetry.count([frame({ sequence: 1, tokens: 10 })])).toEqual(['duplicate']);
  const sums = await b.telemetry.sums();
  expect(sums.all).toMatchObject({ decodeTokens: 25n, hits: 93n, misses: 7n });
  expect(sums.byModel.get('m')).toEqual(sums.all);
  expect(sums.byClass.get('phone')).toEqual(sums.all);
  expect(sums).toMatchObject({ frames: { counted: 2n, duplicate: 2n, refused: 0n }, boots: 1n });
});

test('a boot begins anew, and a late frame of the boot before is compared with its own', async () => {
  await a.telemetry.count([frame({ bootId: 'one', sequence: 1, tokens: 10 })]);
  await a.telemetry.count([frame({ bootId: 'two', sequence: 1, tokens: 3 })]);
  expect(await b.telemetry.count([frame({ bootId: 'one', sequence: 2, tokens: 14 })])).toEqual(['counted']);
  expect(await b.telemetry.count([frame({ bootId: 'one', sequence: 1, tokens: 10 })])).toEqual(['duplicate']);
  expect(await tokens()).toBe(17);
  expect(TelemetryFrame.decode((await a.telemetry.latestBytes('d'))!).decodeTokens).toBe(3n);
});

test('refuses counters that fall within a boot or are too large, changes nothing, and counts the refusal', async () => {
  await a.telemetry.count([frame({ sequence: 1, tokens: 10, misses: 5 })]);
  expect(await a.telemetry.count([frame({ sequence: 2, tokens: 12, misses: 4 })])).toEqual(['refused']);
  expect(await a.telemetry.count([{ ...frame({ sequence: 3, tokens: 0 }), frame: TelemetryFrame.fromPartial({ sequence: 3n, flashBytes: 2n ** 60n }) }])).toEqual(['refused']);
  expect(await a.telemetry.count([frame({ sequence: 4, tokens: 13, misses: 6 })])).toEqual(['counted']);
  expect((await a.telemetry.sums())).toMatchObject({ all: { decodeTokens: 13n, misses: 6n }, frames: { counted: 2n, refused: 1n } });
});

test('an agent that does not tell the sums over its boot counts with those of its layers', async () => {
  const layers = [1, 2].map((layer) => LayerCounters.fromPartial({ layer, hits: 10n, misses: 2n, swaps: 1n }));
  await a.telemetry.count([{ deviceId: 'd', bootId: 'b', model: '', class: '', frame: TelemetryFrame.fromPartial({ sequence: 1n, layers }) }]);
  const { all, byModel, byClass } = await a.telemetry.sums();
  expect(all).toMatchObject({ hits: 20n, misses: 4n, swaps: 2n });
  expect([[...byModel.keys()], [...byClass.keys()]]).toEqual([['none'], ['none']]);
});

test('a key that holds something else costs one device its count, not the others\' of the same call', async () => {
  const ids = Array.from({ length: 40 }, (_, at) => `d${at}`);
  const shard = /:\{count:\d+\}:/;
  await a.telemetry.count(ids.map((deviceId) => frame({ deviceId, sequence: 1, tokens: 1 })));
  const key = (await raw.keys(`${prefix}:*counted:d7`))[0]!;
  expect(key).toMatch(shard);
  await raw.del(key);
  await raw.sadd(key, 'rubbish');
  const outcomes = await a.telemetry.count(ids.map((deviceId) => frame({ deviceId, sequence: 2, tokens: 3 })));
  expect(outcomes.map((outcome, at) => [ids[at], outcome]).filter(([, outcome]) => outcome !== 'counted')).toEqual([['d7', 'damaged']]);
  expect(await tokens()).toBe(39 * 3 + 1);
  await raw.set((await raw.keys(`${prefix}:*counted:d8`))[0]!, 'no record');
  expect(await a.telemetry.count([frame({ deviceId: 'd8', sequence: 3, tokens: 3 })])).toEqual(['counted']);
});

test('the history of a device is a ring of steps; the fleet\'s is their sum', async () => {
  const now = Date.now();
  const at = (steps: number) => now - steps * HISTORY_STEP_MS;
  await a.telemetry.count([frame({ sequence: 1, tokens: 10, misses: 4 }), frame({ deviceId: 'e', sequence: 1, tokens: 1 })], at(3));
  await a.telemetry.count([frame({ sequence: 2, tokens: 11 , misses: 4 })], at(3));
  await a.telemetry.count([frame({ sequence: 3, tokens: 31, misses: 9 })], at(0));
  expect((await a.telemetry.history('d')).map(({ decodeTokens, misses }) => [decodeTokens, misses])).toEqual([[11, 4], [20, 5]]);
  expect((await b.telemetry.sums()).recent.map((point) => point.decodeTokens)).toEqual([12, 20]);
  expect(await a.telemetry.history('nobody')).toEqual([]);
});

test('models and classes without end are summed as others', async () => {
  for (let at = 0; at < 200; at += 1) {
    await a.telemetry.count([frame({ sequence: at + 1, tokens: at + 1, model: `m${at}`, class: `c${at}` })]);
  }
  const sums = await a.telemetry.sums();
  expect(sums.byModel.size).toBeLessThanOrEqual(65);
  expect(sums.byModel.get('other')!.decodeTokens).toBe(136n);
  expect([...sums.byClass.values()].reduce((sum, one) => sum + one.decodeTokens, 0n)).toBe(sums.all.decodeTokens);
});

/** A frame may come by any coordinator, at any time, any number of times, together with any others. */
test('totals equal what the devices have counted, whatever order, repetition and boots', async () => {
  const step = fc.record({ device: fc.integer({ min: 0, max: 2 }), reboot: fc.boolean(), add: fc.integer({ min: 0, max: 50 }) });
  const story = fc.array(step, { minLength: 1, maxLength: 12 }).chain((steps) => fc.record({
    steps: fc.constant(steps), arrivals: fc.array(fc.record({ which: fc.nat({ max: steps.length - 1 }), by: fc.boolean() }), { maxLength: 20 }),
  }));
  let run = 0;
  await fc.assert(fc.asyncProperty(story, async ({ steps, arrivals }) => {
    run += 1;
    const boots = [1, 1, 1];
    const counted = new Map<string, { sequence: number; tokens: number }>();
    const frames = steps.map(({ device, reboot, add }) => {
      // No more reboots than boots that are remembered.
      if (reboot && boots[device]! < 4) boots[device]! += 1;
      const key = `${device}/${boots[device]!}`;
      const { sequence, tokens: before } = counted.get(key) ?? { sequence: 0, tokens: 0 };
      counted.set(key, { sequence: sequence + 1, tokens: before + add });
      return frame({ deviceId: `p${run}-${device}`, bootId: `boot-${boots[device]!}`, sequence: sequence + 1, tokens: before + add, class: `run-${run % 60}` });
    });
    const before = await tokens();
    await Promise.all(arrivals.map(({ which, by }) => (by ? a : b).telemetry.count([frames[which]!])));
    // Whatever was lost or late: the newest of each boot comes through in the end.
    for (const one of frames) await a.telemetry.count([one]);
    const expected = [...counted.values()].reduce((sum, { tokens: each }) => sum + each, 0);
    expect(await tokens() - before).toBe(expected);
  }), { numRuns: 60 });
}, 60_000);

test('counts on a node of a Redis Cluster too', async () => {
  const server = await startClusterRedis();
  const link = new RedisLink({ url: server.url, cluster: true }, log);
  try {
    const registry = new Registry(link, { prefix, coordinatorId: 'a' }, log);
    await link.start();
    const frames = Array.from({ length: 50 }, (_, at) => frame({ deviceId: `d${at}`, sequence: 1, tokens: 2 }));
    expect(new Set(await registry.telemetry.count(frames))).toEqual(new Set(['counted']));
    expect((await registry.telemetry.sums()).all.decodeTokens).toBe(100n);
  } finally {
    await link.stop();
    await server.close();
  }
});

/** The figure the README states. */
const README_BYTES = Number(/at most ([\d,]+) bytes of telemetry per device/.exec(readFileSync(join(__dirname, '../../README.md'), 'utf8'))?.[1]!.replaceAll(',', ''));

test('a device\'s telemetry takes no more of Redis than the README says', async () => {
  const now = Date.now();
  const layers = Array.from({ length: 48 }, (_, layer) => LayerCounters.fromPartial({ layer, capacity: 64, resident: 64, hits: 123_456_789n, misses: 1_234_567n, swaps: 12_345_678n, events: 12_345_678n, massLost: 12.5, rangeMean: 3.25 }));
  const deviceId = 'd'.repeat(63);
  for (let boot = 0; boot < 6; boot += 1) {
    for (let step = 0; step < 60; step += 1) {
      const telemetry = TelemetryFrame.fromPartial({
        sequence: BigInt(step + 1), decodeTokens: BigInt(step), layers, timeMs: BigInt(now), readMicrosLog2: Array.from({ length: 32 }, () => 1_000_000n),
        lastTrace: { requestId: 'r'.repeat(36), traceIds: ['a'.repeat(32)], misses: 10n, timeMs: BigInt(now) }, flashBytes: 10n ** 12n,
      });
      await a.telemetry.count([{ deviceId, bootId: `${boot}`.repeat(63), model: 'm', class: 'c', frame: telemetry }], now - (59 - step) * HISTORY_STEP_MS);
    }
  }
  const keys = (await raw.keys(`${prefix}:*${deviceId}`)).sort();
  expect(keys.map((key) => key.replace(/^.*\}:(\w+):.*$/, '$1'))).toEqual(['counted', 'frame', 'ring']);
  const used = await Promise.all(keys.map(async (key) => Number(await raw.call('MEMORY', 'USAGE', key))));
  const total = used.reduce((sum, one) => sum + one, 0);
  process.stderr.write(`telemetry of a device with 48 layers in Redis: ${total} bytes (${keys.map((key, at) => `${key.replace(/^.*\}:(\w+):.*$/, '$1')} ${used[at]!}`).join(', ')})\n`);
  expect(total).toBeLessThanOrEqual(README_BYTES);
  // And not so far below it that the README would mislead.
  expect(total).toBeGreaterThan(README_BYTES * 0.6);
});
