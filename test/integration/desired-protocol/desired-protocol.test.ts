/**
 * The desired/reported protocol under random interleavings of pushes, losses, duplicates, reorders, deaths of every
 * party, clock jumps and a Redis that forgets. Whatever happens: only what was desired is ever run, the last good spec
 * stays, and once all is well again the device runs the newest spec or says why not.
 */
import * as fc from 'fast-check';
import { createLogger } from '@moefleet/runtime';
import { RedisLink } from '../../../coordinator/src/registry/redis-link';
import { startRedis, type TestRedis } from '../../harness/redis';
import { type Step, World } from './world';

let redis: TestRedis;
let link: RedisLink;
beforeAll(async () => {
  redis = await startRedis();
  link = new RedisLink({ url: redis.url, cluster: false }, createLogger('test', 'silent'));
  await link.start();
});
afterAll(async () => {
  await link.stop();
  await redis.close();
});

const HOUR_MS = 3_600_000;
const simple = (t: 'connect' | 'cut' | 'toCoordinator' | 'swapToAgent' | 'tick' | 'agentDies' | 'coordinatorDies' | 'serve' | 'redisLosesDesired') => fc.constant<Step>({ t });
const pushes = fc.record({ t: fc.constant('push' as const), lambda: fc.integer({ min: 0, max: 10 }).map((tenths) => tenths / 10), refusable: fc.boolean(), woken: fc.boolean() });
const step: fc.Arbitrary<Step> = fc.oneof(
  { arbitrary: pushes, weight: 5 },
  { arbitrary: fc.record({ t: fc.constant('toAgent' as const), twice: fc.boolean() }), weight: 6 },
  { arbitrary: simple('toCoordinator'), weight: 6 },
  { arbitrary: simple('serve'), weight: 3 },
  { arbitrary: simple('connect'), weight: 3 },
  { arbitrary: fc.record({ t: fc.constant('engineDies' as const), times: fc.integer({ min: 1, max: 2 }) }), weight: 3 },
  { arbitrary: fc.record({ t: fc.constant('stale' as const), at: fc.nat(20) }), weight: 2 },
  { arbitrary: simple('tick'), weight: 2 }, { arbitrary: simple('agentDies'), weight: 3 }, { arbitrary: simple('coordinatorDies'), weight: 2 },
  { arbitrary: simple('cut'), weight: 1 }, { arbitrary: simple('swapToAgent'), weight: 1 }, { arbitrary: simple('redisLosesDesired'), weight: 1 },
  { arbitrary: fc.record({ t: fc.constant('clock' as const), byMs: fc.integer({ min: -30 * HOUR_MS, max: 30 * HOUR_MS }) }), weight: 1 },
);

/** The same ones every time; more by `MOEFLEET_PROTOCOL_RUNS`, others by `MOEFLEET_PROTOCOL_SEED`. */
const numRuns = Number(process.env['MOEFLEET_PROTOCOL_RUNS'] ?? 100);
const seed = Number(process.env['MOEFLEET_PROTOCOL_SEED'] ?? 1);

test('whatever goes wrong, only desired specs are run, the last good one stays, and all ends at the newest', async () => {
  await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60, size: 'max' }), fc.integer({ min: 1, max: 9 }), async (steps, last) => {
    const world = new World(link);
    try {
      await world.begin();
      for (const each of steps) await world.step(each);
      // A newest one that can be taken, so that there is something to converge to.
      await world.step({ t: 'push', lambda: last / 10, refusable: false, woken: false });
      await world.heal();
      const { desired, runs, registryKnows, settledGeneration } = await world.outcome();
      expect({ hash: runs.hash, registryKnows, settledGeneration }).toEqual({ hash: desired.hash, registryKnows: desired.hash, settledGeneration: desired.generation });
      expect(desired.lambda).toBe(last / 10);
    } finally {
      await world.end();
    }
  }), { numRuns, seed });
});
