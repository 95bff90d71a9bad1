/**
 * Takes learner jobs off the queue, one at a time. Redis may be away at any time: the connection is tried again until
 * it is back, and a job that lost its lock meanwhile is stopped, as another learner may have it by then. A job that is
 * stopped by a shutdown goes back to the queue.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Job, Queue, WaitingError, Worker } from 'bullmq';
import type { Logger, Service } from '@moefleet/runtime';
import { createQueueClient, queuePrefix, type RedisAddress, type RedisClient, shownUrl } from '@moefleet/runtime/redis';

export const QUEUE_NAME = 'learner';
const JOB_NAME = 'learn';
/** Finished jobs kept, for whoever looks. */
const KEPT = { removeOnComplete: { count: 20 }, removeOnFail: { count: 20 } };

/** Another learner takes over this long after the one with the job has died. */
const LOCK_MS = 60_000;
/** A job that outlives this many learners is not to blame for it. */
const MAX_STALLED = 100;
/** What a job that is told to stop may take to go back to the queue. */
const JOB_PATIENCE_MS = 5000;
/** A Redis that has not answered by then is away; the lock of a running job runs out by itself. */
const PING_PATIENCE_MS = 1000;

export interface JobProgress { activity: string; done: number; total: number; }

export type Work = (reason: string, onProgress: (progress: JobProgress) => void, signal: AbortSignal) => Promise<unknown>;

export interface JobWorkerOptions { redis: RedisAddress; redisPrefix: string; log: Logger; }

type RedisState = { t: 'connecting' } | { t: 'up' } | { t: 'away' };

export class JobWorker implements Service {
  readonly name = 'job worker';
  private redis: RedisClient | null = null;
  private worker: Worker | null = null;
  private queue: Queue | null = null;
  private state: RedisState = { t: 'connecting' };
  private readonly stopping = new AbortController();
  private running: Promise<unknown> = Promise.resolve();

  constructor(private readonly work: Work, private readonly options: JobWorkerOptions) {}

  async start(): Promise<void> {
    const { redis, redisPrefix } = this.options;
    this.redis = createQueueClient(redis, 'moefleet-learner');
    this.redis.on('ready', () => this.become({ t: 'up' }, ''));
    this.redis.on('error', (error) => this.onError(error));
    this.redis.on('close', () => this.become({ t: 'away' }, 'connection closed'));
    const prefix = queuePrefix(redisPrefix);
    this.queue = new Queue(QUEUE_NAME, { connection: this.redis, prefix, defaultJobOptions: KEPT });
    this.queue.on('error', (error) => this.onError(error));
    this.worker = new Worker(QUEUE_NAME, (job, token, signal) => this.run(this.process(job, token, signal!)), {
      connection: this.redis,
      prefix,
      concurrency: 1,
      lockDuration: LOCK_MS,
      maxStalledCount: MAX_STALLED,
    });
    this.worker.on('error', (error) => this.onError(error));
    this.worker.on('lockRenewalFailed', (jobIds) => {
      for (const id of jobIds) this.worker?.cancelJob(id, 'its lock was lost');
    });
    this.worker.on('active', (job) => this.options.log.info({ jobId: job.id, reason: reasonOf(job) }, 'learner run begins'));
    this.worker.on('failed', (job, error) => this.options.log.error({ jobId: job?.id, err: error }, 'learner run failed'));
  }

  get up(): boolean {
    return this.state.t === 'up';
  }

  /** Runs that wait; null where Redis does not say. */
  async waiting(): Promise<number | null> {
    if (!this.queue || !this.redis || !await answers(this.redis)) return null;
    return this.queue.getWaitingCount().catch(() => null);
  }

  /** A run for this reason, unless one waits already. One that Redis loses is done without: what is to be measured is kept with the coordinator. */
  queueRun(reason: string): void {
    this.queue?.add(JOB_NAME, { reason }, { deduplication: { id: reason } }).catch((error: unknown) => this.onError(error as Error));
  }

  async stop(): Promise<void> {
    const { worker, redis, queue } = this;
    if (!worker || !redis) return;
    this.worker = null;
    this.queue = null;
    this.redis = null;
    // The pause comes first, so that the job that goes back to the queue is not taken again. BullMQ's own orderly close
    // waits for the blocking connection's end, for ever where that one is just reconnecting.
    await worker.pause(true);
    this.stopping.abort(new Error('the learner is stopping'));
    if (await answers(redis)) await Promise.race([this.running, sleep(JOB_PATIENCE_MS, undefined, { ref: false })]);
    await worker.close(true).catch((err: unknown) => this.options.log.warn({ err }, 'queue closed badly'));
    await queue?.close().catch(() => {});
    redis.disconnect();
  }

  private run(work: Promise<unknown>): Promise<unknown> {
    this.running = work.catch(() => {});
    return work;
  }

  private async process(job: Job, token: string | undefined, lost: AbortSignal): Promise<unknown> {
    const signal = AbortSignal.any([lost, this.stopping.signal]);
    try {
      return await this.work(reasonOf(job), (progress) => void job.updateProgress({ ...progress }).catch(() => {}), signal);
    } catch (error) {
      if (!this.stopping.signal.aborted || lost.aborted) throw error;
      await job.moveToWait(token);
      throw new WaitingError('the learner is stopping');
    }
  }

  private onError(error: Error): void {
    if (/ECONN|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|EPIPE|Connection is closed|Socket closed/i.test(`${(error as NodeJS.ErrnoException).code} ${error.message}`)) {
      this.become({ t: 'away' }, error.message || String((error as NodeJS.ErrnoException).code));
    } else {
      this.options.log.error({ err: error }, 'queue error');
    }
  }

  private become(next: RedisState, detail: string): void {
    const before = this.state;
    if (before.t === next.t || this.stopping.signal.aborted) return;
    this.state = next;
    const redisUrl = shownUrl(this.options.redis.url);
    if (next.t === 'away') this.options.log.warn({ redisUrl, detail }, 'redis away, trying again');
    else this.options.log.info({ redisUrl }, before.t === 'away' ? 'redis back' : 'redis connected');
  }
}

async function answers(redis: RedisClient): Promise<boolean> {
  if (redis.status !== 'ready') return false;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => { timer = setTimeout(() => resolve(false), PING_PATIENCE_MS); });
  const answered = await Promise.race([redis.ping().then(() => true, () => false), late]);
  clearTimeout(timer);
  return answered;
}

function reasonOf(job: Job): string {
  const reason: unknown = (job.data as { reason?: unknown } | undefined)?.reason;
  return typeof reason === 'string' ? reason : 'unknown';
}
