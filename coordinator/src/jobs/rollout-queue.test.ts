import { createLogger } from '@moefleet/runtime';
import { Queue } from 'bullmq';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { startClusterRedis } from '../testing/cluster-redis';
import { randomPrefix } from '../testing/test-coordinator';
import { queuePrefix } from '@moefleet/runtime/redis';
import { ROLLOUT_QUEUE, RolloutQueue, type Steps } from './rollout-queue';

let redis: TestRedis;
let prefix: string;
const parts: { close(): Promise<unknown> }[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(() => { prefix = randomPrefix(); });
afterEach(async () => { for (const part of parts.splice(0).reverse()) await part.close(); });

async function start(steps: Steps, address = { url: redis.url, cluster: false }): Promise<{ queue: RolloutQueue; up: () => void }> {
  let up = () => {};
  const queue = new RolloutQueue(steps, { redis: address, redisPrefix: prefix, lockMs: 2000 }, { onUp: (listener) => { up = listener; return () => {}; } }, createLogger('test', 'silent'));
  await queue.start();
  parts.push({ close: () => queue.stop() });
  return { queue, up: () => up() };
}

/** Counts steps down to the end, and notices two that run at once. */
function counted(steps: number) {
  const seen = { left: steps, running: 0, together: 0 };
  const step = async () => {
    seen.running += 1;
    seen.together = Math.max(seen.together, seen.running);
    await new Promise((resolve) => setTimeout(resolve, 10));
    seen.running -= 1;
    seen.left -= 1;
    return seen.left > 0 ? 5 : null;
  };
  return { seen, steps: { step, active: async () => (seen.left > 0 ? ['ro-1'] : []) } };
}

test('runs step after step to the end, one at a time, however many coordinators and wake-ups there are', async () => {
  const { seen, steps } = counted(8);
  const queues = [await start(steps), await start(steps), await start(steps)];
  for (const { queue } of queues) await queue.wake('ro-1');
  await until('the steps are done', () => seen.left <= 0, 15_000, 10);
  expect(seen.together).toBe(1);
});

test('a step that fails is run again', async () => {
  let failures = 2;
  let done = false;
  await start({ active: async () => (done ? [] : ['ro-1']), step: async () => {
    failures -= 1;
    if (failures >= 0) throw new Error('Redis is away');
    done = true;
    return null;
  } });
  await until('it is done', () => done, 15_000, 20);
});

test('a job that Redis has lost is made again from the rollouts that go on', async () => {
  const { seen, steps } = counted(1000);
  const { up } = await start(steps);
  await until('it runs', () => seen.left < 998, 10_000, 10);
  const look = new Queue(ROLLOUT_QUEUE, { connection: { url: redis.url }, prefix: queuePrefix(prefix) });
  parts.push(look);
  await look.obliterate({ force: true });
  await new Promise((resolve) => setTimeout(resolve, 300));
  const { left } = seen;
  up();
  await until('it runs again', () => seen.left < left - 1, 10_000, 20);
});

test('works on a Redis Cluster', async () => {
  const cluster = await startClusterRedis();
  const { seen, steps } = counted(3);
  const { queue } = await start(steps, { url: cluster.url, cluster: true });
  await until('the steps are done', () => seen.left <= 0, 15_000, 10);
  await queue.stop();
  await cluster.close();
});
