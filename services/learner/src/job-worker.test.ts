import { randomUUID } from 'node:crypto';
import { Queue } from 'bullmq';
import { createLogger } from '@moefleet/runtime';
import { createQueueClient, queuePrefix } from '@moefleet/runtime/redis';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { startReplicatedCluster } from '../../../test/harness/redis-cluster';
import { until } from '../../../test/harness/ports';
import { JobWorker, QUEUE_NAME, type Work } from './job-worker';

const log = createLogger('test', 'silent');
let redis: TestRedis;
let queue: Queue;
let redisPrefix: string;
const workers: JobWorker[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(() => {
  redisPrefix = `test-${randomUUID()}`;
  queue = new Queue(QUEUE_NAME, { connection: { url: redis.url, maxRetriesPerRequest: null }, prefix: `{${redisPrefix}:bull}` });
  queue.on('error', () => {});
});
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.stop()));
  await queue.close();
});

async function worker(work: Work): Promise<JobWorker> {
  const made = new JobWorker(work, { redis: { url: redis.url, cluster: false }, redisPrefix, log });
  workers.push(made);
  await made.start();
  return made;
}

test('does the job with its reason, and keeps its progress', async () => {
  const reasons: string[] = [];
  await worker(async (reason, onProgress) => {
    reasons.push(reason);
    onProgress({ activity: 'measuring', done: 1, total: 2 });
    return { points: 3 };
  });
  const { id } = await queue.add('run', { reason: 'operator' });
  await until('the job is done', async () => (await queue.getJob(id!))!.isCompleted());
  const job = (await queue.getJob(id!))!;
  expect(reasons).toEqual(['operator']);
  expect(job.returnvalue).toEqual({ points: 3 });
  expect(job.progress).toEqual({ activity: 'measuring', done: 1, total: 2 });
});

test('reports a job that failed and takes the next', async () => {
  let runs = 0;
  await worker(async () => {
    runs += 1;
    if (runs === 1) throw new Error('no model');
  });
  const first = await queue.add('run', { reason: 'tick' });
  const second = await queue.add('run', { reason: 'tick' });
  await until('the second is done', async () => (await queue.getJob(second.id!))!.isCompleted());
  expect((await queue.getJob(first.id!))!.failedReason).toBe('no model');
});

test('gives a job back to the queue when it is stopped, and another learner does it', async () => {
  let begun = false;
  const stopped = await worker((_reason, _onProgress, signal) => {
    begun = true;
    return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));
  });
  const { id } = await queue.add('run', { reason: 'tick' });
  await until('it has begun', () => begun);
  await stopped.stop();
  expect(await (await queue.getJob(id!))!.getState()).toBe('waiting');
  await worker(async () => 'done by the other');
  await until('it is done', async () => (await queue.getJob(id!))!.isCompleted());
  expect((await queue.getJob(id!))!.returnvalue).toBe('done by the other');
});

test('outlives a Redis that goes away, and starts without one', async () => {
  await redis.stop();
  let runs = 0;
  const early = await worker(async () => { runs += 1; });
  await redis.start();
  await queue.add('run', { reason: 'tick' });
  await until('the worker that began without Redis has done it', () => runs === 1);
  await redis.stop();
  await redis.start();
  await queue.add('run', { reason: 'tick' });
  await until('it does the next one after Redis came back', () => runs === 2, 60_000);
  await early.stop();
});

test('stops within seconds while Redis is away', async () => {
  const idle = await worker(async () => {});
  const { id } = await queue.add('run', { reason: 'tick' });
  await until('it has done a job', async () => (await queue.getJob(id!))!.isCompleted());
  await redis.stop();
  try {
    const begun = Date.now();
    await idle.stop();
    expect(Date.now() - begun).toBeLessThan(8000);
  } finally {
    await redis.start();
  }
});

test('takes jobs of a Redis Cluster of six nodes, and goes on when the master of its queue has died', async () => {
  const cluster = await startReplicatedCluster();
  const address = { url: cluster.url, cluster: true };
  const client = createQueueClient(address, 'test');
  client.on('error', () => {});
  const jobs = new Queue(QUEUE_NAME, { connection: client, prefix: queuePrefix(redisPrefix) });
  jobs.on('error', () => {});
  const reasons: string[] = [];
  const made = new JobWorker(async (reason) => { reasons.push(reason); }, { redis: address, redisPrefix, log });
  try {
    await made.start();
    await jobs.add('run', { reason: 'before' });
    await until('a job is done', () => reasons.includes('before'), 20_000);
    expect(await made.waiting()).toBe(0);
    await cluster.failover(await cluster.masterOf(`${queuePrefix(redisPrefix)}:${QUEUE_NAME}:id`));
    await jobs.add('run', { reason: 'after' });
    await until('the next is done', () => reasons.includes('after'), 40_000);
    made.queueRun('own');
    await until('one of its own is done', () => reasons.includes('own'), 20_000);
  } finally {
    await made.stop();
    await jobs.close().catch(() => {});
    client.disconnect();
    await cluster.close();
  }
});
