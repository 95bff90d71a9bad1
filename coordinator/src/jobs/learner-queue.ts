/**
 * The learner's job queue (BullMQ): a job every few seconds, and one now when an operator asks. Workers are
 * `services/learner`. The scheduler makes its next job only when a worker has taken the last, so jobs do not pile up
 * while none runs.
 */
import type { Logger, Service } from '@moefleet/runtime';
import { Queue } from 'bullmq';
import { RegistryUnavailableError } from '../errors';
import { createRedisClient, queuePrefix, type RedisAddress, type RedisClient, shownUrl } from '@moefleet/runtime/redis';
import { QueueTrouble } from './queue-trouble';

/** A worker needs this name and `queuePrefix` of the same Redis prefix. */
export const LEARNER_QUEUE = 'learner';

/** What a job says: whether its time had come or an operator has asked. */
export interface LearnerJob { reason: 'schedule' | 'operator' }

export interface LearnerQueueOptions {
  redis: RedisAddress;
  redisPrefix: string;
  /** 0: only on request */
  everyMs: number;
}

const JOB_NAME = 'learn';
const SCHEDULER_ID = 'every';
/** Finished jobs kept, for whoever looks. */
const KEPT = { removeOnComplete: { count: 20 }, removeOnFail: { count: 20 } };

export class LearnerQueue implements Service {
  readonly name = 'learner queue';
  private client: RedisClient | null = null;
  private queue: Queue<LearnerJob> | null = null;
  private stopListening: () => void = () => {};
  private readonly trouble: QueueTrouble;

  /** `link` tells when Redis is back, so that a schedule that Redis has lost is made again. */
  constructor(private readonly options: LearnerQueueOptions, private readonly link: { onUp(listener: () => void): () => void }, log: Logger) {
    this.trouble = new QueueTrouble('learner queue', log);
  }

  async start(): Promise<void> {
    this.client = createRedisClient(this.options.redis, 'moefleet-coordinator-queue');
    this.client.on('error', this.trouble.tell);
    await this.client.connect();
    this.queue = new Queue<LearnerJob>(LEARNER_QUEUE, { connection: this.client, prefix: queuePrefix(this.options.redisPrefix), defaultJobOptions: KEPT });
    this.queue.on('error', this.trouble.tell);
    this.stopListening = this.link.onUp(() => void this.schedule().catch(this.trouble.tell));
    await this.schedule();
  }

  async stop(): Promise<void> {
    this.stopListening();
    const { queue, client } = this;
    this.queue = null;
    this.client = null;
    await queue?.close().catch(() => {});
    client?.disconnect();
  }

  /** The id of a job that waits or runs on an operator's request: a new one unless there is one. */
  async addNow(): Promise<string> {
    if (!this.queue || this.client?.status !== 'ready') throw this.unavailable(new Error('no connection'));
    try {
      const job = await this.queue.add(JOB_NAME, { reason: 'operator' }, { deduplication: { id: 'operator' }, priority: 0 });
      return job.id ?? '';
    } catch (error) {
      throw this.unavailable(error);
    }
  }

  private async schedule(): Promise<void> {
    if (!this.queue) return;
    if (this.options.everyMs === 0) await this.queue.removeJobScheduler(SCHEDULER_ID);
    else await this.queue.upsertJobScheduler(SCHEDULER_ID, { every: this.options.everyMs }, { name: JOB_NAME, data: { reason: 'schedule' }, opts: KEPT });
    this.trouble.over();
  }

  private unavailable(cause: unknown): RegistryUnavailableError {
    return new RegistryUnavailableError(shownUrl(this.options.redis.url), cause);
  }
}
