/**
 * Blobs from the coordinator, for as long as it takes: a chunk comes in several ranges at a time, as many as the link takes
 * (range-lanes.ts), and a range that breaks off goes on where it stopped. What waits (the coordinator is away, it asks for patience, quiet hours) is told in the progress.
 */
import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { backoffMs, type Logger } from '@moefleet/runtime';
import { BlobAnswerError, type BlobClient } from './blob-client';
import type { FetchAllowance } from './fetch-allowance';
import type { FetchProgress } from './fetch-progress';
import { type Chunk, MAX_MANIFEST_BYTES, short } from './manifest';
import { verify, WrongBytesError } from './part-file';
import { MANY_LANES, RangeLanes } from './range-lanes';

/** Short, so that all connections have work until the chunk ends; shorter ones are not worth a request. */
const RANGES_PER_LANE = 4;
const LEAST_RANGE_BYTES = 16 * 1024;
const BACKOFF = { baseMs: 500, maxMs: 30_000 };
/** A coordinator that has just lost its store's disk may get it back, and another may answer the next time. */
const TRIES_IN_VAIN = 5;
/** What has come of a chunk goes with it. */
const TRIES_BEFORE_GIVING_UP = 3;
/** Quiet hours may be changed while they last. */
const QUIET_LOOK_MS = 5_000;
const AWAY = 'the coordinator is away';

/** The coordinator has something else, or nothing, under this hash. */
export class BlobGoneError extends Error {
  override readonly name = 'BlobGoneError';
}

/** It has not come, and somebody else may have it. */
export class GivenUpError extends Error {
  override readonly name = 'GivenUpError';
}

export interface CoordinatorBlobsOptions {
  /** null while there is no address to dial */
  client: () => BlobClient | null;
  allowance: FetchAllowance;
  log: Logger;
  random?: () => number;
  backoff?: { baseMs: number; maxMs: number };
}

export class CoordinatorBlobs {
  private readonly lanes = new RangeLanes(() => performance.now());

  constructor(private readonly options: CoordinatorBlobsOptions) {}

  /** Whole, not verified. Rejects with BlobGoneError, or when `signal` aborts. */
  async manifest(sha256: string, progress: FetchProgress, signal: AbortSignal): Promise<Buffer> {
    const parts: Buffer[] = [];
    let got = 0;
    let total = Infinity;
    await this.persist(sha256, progress, signal, () => false, () => got, async (client) => {
      while (got < total) {
        total = await client.read({ sha256, offset: got, bytes: MAX_MANIFEST_BYTES - got }, async (part) => {
          parts.push(part);
          got += part.length;
          progress.arrived(part.length, 'coordinator');
          await this.options.allowance.take(part.length, signal);
        }, signal);
        if (total > MAX_MANIFEST_BYTES) throw new BlobGoneError(`manifest ${short(sha256)} has ${total} bytes, at most ${MAX_MANIFEST_BYTES} are taken`);
      }
    });
    return Buffer.concat(parts);
  }

  /** Verified. `giveUp` is asked after a try in vain. Rejects with GivenUpError, BlobGoneError, or when `signal` aborts. */
  async chunk(chunk: Chunk, progress: FetchProgress, signal: AbortSignal, giveUp: () => boolean): Promise<Buffer> {
    for (let tries = 1; ; tries += 1) {
      const data = await this.unverified(chunk, progress, signal, giveUp);
      try {
        verify(chunk, data);
        return data;
      } catch (error) {
        if (!(error instanceof WrongBytesError) || tries === TRIES_IN_VAIN) throw new BlobGoneError(`the coordinator sent wrong bytes ${tries} times: ${(error as Error).message}`, { cause: error });
        this.options.log.warn({ reason: (error as Error).message }, 'the coordinator sent wrong bytes; asking again');
      }
    }
  }

  private async unverified({ sha256, bytes }: Chunk, progress: FetchProgress, signal: AbortSignal, giveUp: () => boolean): Promise<Buffer> {
    const data = Buffer.allocUnsafe(bytes);
    const rangeBytes = Math.max(LEAST_RANGE_BYTES, Math.ceil(bytes / (RANGES_PER_LANE * this.lanes.count)));
    const ended = new AbortController();
    const either = AbortSignal.any([signal, ended.signal]);
    setMaxListeners(2 * MANY_LANES, either);
    const fetchRange = async (from: number): Promise<void> => {
      let at = from;
      const end = Math.min(bytes, from + rangeBytes);
      await this.persist(sha256, progress, either, giveUp, () => at, async (client) => {
        while (at < end) {
          const total = await client.read({ sha256, offset: at, bytes: end - at }, async (part) => {
            part.copy(data, at);
            at += part.length;
            this.lanes.arrived(part.length);
            progress.arrived(part.length, 'coordinator');
            await this.options.allowance.take(part.length, either);
          }, either, this.lanes.patienceMs);
          if (total !== bytes) throw new BlobGoneError(`the coordinator has ${total} bytes under ${short(sha256)}, the manifest says ${bytes}`);
        }
      });
    };
    const ranges = Array.from({ length: Math.ceil(bytes / rangeBytes) }, (_, at) => this.lanes.run(() => fetchRange(at * rangeBytes), either));
    try {
      await Promise.all(ranges);
    } catch (error) {
      ended.abort();
      await Promise.allSettled(ranges);
      throw error;
    }
    return data;
  }

  /** Tries until `work` is through; `reached`: how far it has come, by which a try in vain is told from one that broke off. */
  private async persist(sha256: string, progress: FetchProgress, signal: AbortSignal, giveUp: () => boolean, reached: () => number, work: (client: BlobClient) => Promise<void>): Promise<void> {
    const { client, random = Math.random, backoff = BACKOFF } = this.options;
    for (let attempt = 0, absences = 0; ;) {
      const before = reached();
      try {
        const found = client();
        if (!found) throw new Error(AWAY);
        return await work(found);
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof BlobGoneError) throw error;
        if (error instanceof BlobAnswerError && error.status === 404) absences += 1;
        if (error instanceof BlobAnswerError && error.status === 503) this.lanes.refused();
        if (absences === TRIES_IN_VAIN) throw new BlobGoneError(`the coordinator does not keep ${short(sha256)} any more; push the model again: moefleet model push FILE`, { cause: error });
        attempt = reached() > before ? 0 : attempt + 1;
        if (attempt >= TRIES_BEFORE_GIVING_UP && giveUp()) throw new GivenUpError((error as Error).message, { cause: error });
        const asked = error instanceof BlobAnswerError ? error.retryAfterMs : null;
        const waitMs = backoffMs(attempt, { ...backoff, random }) + (asked ?? 0);
        const { message } = error as Error;
        const moves = progress.waitsFor(message === AWAY ? AWAY : `${AWAY}: ${message}`);
        await delay(waitMs, undefined, { signal }).finally(moves);
      }
    }
  }

  /** Resolves when it is not quiet, which `allowance` knows. */
  async untilLoud(progress: FetchProgress, signal: AbortSignal): Promise<void> {
    for (let quiet = this.quiet(); quiet; quiet = this.quiet()) {
      const over = progress.waitsFor(quiet.reason);
      await delay(Math.min(quiet.ms, QUIET_LOOK_MS), undefined, { signal }).finally(over);
    }
  }

  /** null: none now. */
  quiet(): { ms: number; reason: string } | null {
    return this.options.allowance.quiet();
  }
}
