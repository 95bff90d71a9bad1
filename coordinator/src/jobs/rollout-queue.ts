/**
 * Drives rollouts (BullMQ): one job per rollout that is under way, which runs one step and then delays itself until the
 * next is due. Whoever holds the job's lock is the only one that drives the rollout; when that coordinator dies, the
 * lock runs out and another takes the job over. A job that Redis has lost is made again from the list of rollouts that
 * have not ended, at every start and every so often.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Logger, type Service } from '@moefleet/runtime';
import { DelayedError, type Job, Queue, Worker } from 'bullmq';
import { reasonOf } from '../errors';
import { createQueueClient, createRedisClient, queuePrefix, type RedisAddress, type RedisClient } from '@moefleet/runtime/redis';
import { QueueTrouble } from './queue-trouble';

export const ROLLOUT_QUEUE = 'rollouts';

export interface RolloutQueueOptions {
  redis: RedisAddress;
  redisPrefix: string;
  /** how long a coordinator that has died keeps a job; see LOCK_MS */
  lockMs?: number;
}

/** What the queue is about: it knows nothing of rollouts but their ids. */
export interface Steps {
  /** milliseconds until the next step; null: none until it is woken */
  step(id: string): Promise<number | null>;
  /** ids of rollouts that have not ended */
  active(): Promise<string[]>;
}

/** Another coordinator takes over this long after the one with the job has died, at most twice that. */
const LOCK_MS = 10_000;
/** Jobs that were lost are made again this often. */
const SWEEP_MS = 15_000;
/** After a step that has failed, as when Redis was away. */
const AGAIN_MS = 1000;
const CONCURRENCY = 4;
/** Steps that run when the queue stops are given this long to end; another coordinator takes up what they leave. */
const STEP_PATIENCE_MS = 5000;
/** After a failure of Redis; BullMQ would wait fifteen seconds before it looks for jobs again. */
const LOOK_AGAIN_MS = 1000;
/** A Redis that has not answered by then is away; locks run out by themselves. */
const PING_PATIENCE_MS = 1000;

export class RolloutQueue implements Service {
  readonly name = 'rollout queue';
  private client: RedisClient | null = null;
  private workerClient: RedisClient | null = null;
  private queue: Queue | null = null;
  private worker: Worker | null = null;
  private timer: NodeJS.Timeout | undefined;
  private stopListening: () => void = () => {};
  private readonly trouble: QueueTrouble;
  private readonly running = new Set<Promise<void>>();

  /** `link` tells when Redis is back. */
  constructor(private readonly steps: Steps, private readonly options: RolloutQueueOptions, private readonly link: { onUp(listener: () => void): () => void }, private readonly log: Logger) {
    this.trouble = new QueueTrouble('rollout queue', log);
  }

  async start(): Promise<void> {
    const { redis, redisPrefix, lockMs = LOCK_MS } = this.options;
    const prefix = queuePrefix(redisPrefix);
    this.client = createRedisClient(redis, 'moefleet-coordinator-rollouts');
    this.workerClient = createQueueClient(redis, 'moefleet-coordinator-rollout-worker');
    for (const client of [this.client, this.workerClient]) client.on('error', this.trouble.tell);
    await this.client.connect();
    this.queue = new Queue(ROLLOUT_QUEUE, { connection: this.client, prefix });
    this.queue.on('error', this.trouble.tell);
    this.worker = new Worker(ROLLOUT_QUEUE, (job, token) => this.run(this.process(job, token)), {
      connection: this.workerClient, prefix, concurrency: CONCURRENCY, runRetryDelay: LOOK_AGAIN_MS,
      lockDuration: lockMs, stalledInterval: lockMs / 2, maxStalledCount: Number.MAX_SAFE_INTEGER,
    });
    this.worker.on('error', this.trouble.tell);
    this.stopListening = this.link.onUp(() => void this.sweep());
    this.timer = setInterval(() => void this.sweep(), SWEEP_MS);
    await this.sweep();
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    this.stopListening();
    const { queue, worker, client, workerClient } = this;
    Object.assign(this, { queue: null, worker: null, client: null, workerClient: null });
    // BullMQ's own orderly close waits for the blocking connection's end, for ever where that one is just reconnecting.
    await worker?.pause(true);
    if (client !== null && await answers(client)) await Promise.race([Promise.allSettled(this.running), sleep(STEP_PATIENCE_MS, undefined, { ref: false })]);
    await worker?.close(true).catch(this.trouble.tell);
    await queue?.close().catch(() => {});
    workerClient?.disconnect();
    client?.disconnect();
  }

  /** Has a step of the rollout run soon. Failing is no harm: the next sweep does it. */
  async wake(id: string): Promise<void> {
    try {
      await this.queue?.add('step', { rolloutId: id }, { jobId: id, removeOnComplete: true, removeOnFail: true });
    } catch (error) {
      this.trouble.tell(error);
    }
  }

  private async sweep(): Promise<void> {
    try {
      for (const id of await this.steps.active()) await this.wake(id);
      this.trouble.over();
    } catch (error) {
      this.trouble.tell(error);
    }
  }

  private run(step: Promise<void>): Promise<void> {
    this.running.add(step);
    return step.finally(() => this.running.delete(step));
  }

  private async process(job: Job, token: string | undefined): Promise<void> {
    const id = String((job.data as { rolloutId?: unknown } | undefined)?.rolloutId ?? '');
    const delayMs = await this.steps.step(id).catch((error: unknown) => {
      this.log.warn({ rolloutId: id, reason: reasonOf(error) }, 'step of a rollout failed; trying again');
      return AGAIN_MS;
    });
    if (delayMs === null) return;
    await job.moveToDelayed(Date.now() + delayMs, token);
    throw new DelayedError();
  }
}

async function answers(client: RedisClient): Promise<boolean> {
  if (client.status !== 'ready') return false;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => { timer = setTimeout(() => resolve(false), PING_PATIENCE_MS); });
  const answered = await Promise.race([client.ping().then(() => true, () => false), late]);
  clearTimeout(timer);
  return answered;
}
