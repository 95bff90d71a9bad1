import { createLogger } from '@moefleet/runtime';
import { Queue, Worker } from 'bullmq';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { RegistryUnavailableError } from '../errors';
import { startClusterRedis } from '../testing/cluster-redis';
import { randomPrefix } from '../testing/test-coordinator';
import { LEARNER_QUEUE, type LearnerJob, LearnerQueue } from './learner-queue';
import { queuePrefix } from '@moefleet/runtime/redis';

const log = createLogger('test', 'silent');
let redis: TestRedis;
let prefix: string;
let upListeners: (() => void)[];
const parts: { close(): Promise<unknown> }[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(() => { prefix = randomPrefix(); upListeners = []; });
afterEach(async () => { for (const part of parts.splice(0).reverse()) await part.close(); });

async function start(everyMs: number, redisAddress = { url: redis.url, cluster: false }): Promise<LearnerQueue> {
  const queue = new LearnerQueue({ redis: redisAddress, redisPrefix: prefix, everyMs }, { onUp: (listener) => { upListeners.push(listener); return () => {}; } }, log);
  await queue.start();
  parts.push({ close: () => queue.stop() });
  return queue;
}

function look(): Queue {
  const queue = new Queue(LEARNER_QUEUE, { connection: { url: redis.url }, prefix: queuePrefix(prefix) });
  parts.push(queue);
  return queue;
}

function work(done: LearnerJob['reason'][], process: () => Promise<void> = async () => {}): void {
  const worker = new Worker<LearnerJob>(LEARNER_QUEUE, async (job) => { await process(); done.push(job.data.reason); }, { connection: { url: redis.url, maxRetriesPerRequest: null }, prefix: queuePrefix(prefix) });
  parts.push(worker);
}

test('a worker gets a job every so often', async () => {
  await start(50);
  const done: string[] = [];
  work(done as LearnerJob['reason'][]);
  await until('several jobs are done', () => done.length >= 3, 10_000, 10);
  expect(new Set(done)).toEqual(new Set(['schedule']));
});

test('jobs do not pile up while no worker runs, nor when coordinators start again', async () => {
  await start(20);
  await start(20);
  const counts = async () => Object.values(await look().getJobCounts('waiting', 'delayed', 'prioritized', 'active')).reduce((sum, count) => sum + count, 0);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(await counts()).toBe(1);
});

test('an operator\'s job comes beside the schedule, one at a time, and again once it is done', async () => {
  const queue = await start(0);
  const first = await queue.addNow();
  expect(await queue.addNow()).toBe(first);
  const done: LearnerJob['reason'][] = [];
  work(done);
  await until('it is done', () => done.length === 1, 10_000, 10);
  expect(done).toEqual(['operator']);
  await until('another one may come', async () => await queue.addNow() !== first, 5000, 20);
});

test('no schedule is left where it has been switched off', async () => {
  await start(20);
  await start(0);
  expect(await look().getJobSchedulers()).toEqual([]);
});

test('a schedule that Redis has lost is made again when Redis is back', async () => {
  await start(1000);
  await look().obliterate({ force: true });
  await look().removeJobScheduler('every');
  for (const listener of upListeners) listener();
  await until('it is there again', async () => (await look().getJobSchedulers()).length === 1, 5000, 20);
});

test('asking while Redis is away fails at once and names it', async () => {
  const queue = await start(0);
  await redis.stop();
  try {
    await until('it is refused', () => queue.addNow().then(() => false, (error: unknown) => error instanceof RegistryUnavailableError), 5000, 20);
  } finally {
    await redis.start();
  }
  await until('it works again', () => queue.addNow().then(Boolean, () => false), 10_000, 20);
});

test('works on a Redis Cluster', async () => {
  const cluster = await startClusterRedis();
  const queue = await start(1000, { url: cluster.url, cluster: true });
  expect(await queue.addNow()).not.toBe('');
  await queue.stop();
  await cluster.close();
});
