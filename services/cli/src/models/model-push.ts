/**
 * Brings a packed model to the coordinator: looks at it, verifies it, hashes its chunks, sends those that are not there, and
 * enters it under its name. Every chunk that has arrived stays, so the same command goes on where it was interrupted.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { ModelManifest, type StoredModel } from '@moefleet/proto';
import { readExactly, ShortFileError } from '@moefleet/runtime';
import { status } from '@grpc/grpc-js';
import { ByteRate, type Bytes } from '../byte-rate';
import { runEngineJob } from '../engine/engine-process';
import { Failure, statusOf, UsageFailure } from '../failure';
import type { OperatorConnection } from '../operator-connection';
import { type ChunkPlace, chunkPlan } from './chunk-plan';

const ASKED_AT_ONCE = 10_000;
const STREAMS = 4;
/** In which nothing arrives; the wait before each is longer than the one before. */
const MOST_VAIN_ROUNDS = 5;
const FIRST_WAIT_MS = 500;
/** Of a coordinator that is away, restarting or busy. */
const PASSING: readonly (status | undefined)[] = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.DEADLINE_EXCEEDED, status.ABORTED];

export interface Pushed { model: StoredModel; sentBytes: number; sentChunks: number }

interface HashedChunk extends ChunkPlace { readonly sha256: Buffer }

export interface PushListener { progress(fraction: number, what: string, detail: string): void; note(text: string): void }

/** Throws UsageFailure for a file that is no packed model, Failure for the rest. */
export async function pushModel(operator: OperatorConnection, path: string, name: string, listener: PushListener, signal: AbortSignal): Promise<Pushed> {
  const { info, hash } = await runEngineJob({ t: 'identify', path }, { onProgress: () => {} }, signal);
  if (info.packVersion === 0 || info.files.length > 1) {
    throw new UsageFailure(`${path}: is not packed, so nobody could verify what arrives; write a packed copy first: moefleet model pack ${path} packed.gguf`);
  }
  const tell = teller(listener);
  const check = await runEngineJob({ t: 'check', path }, { onProgress: (_, what, bytes) => bytes && tell(what, bytes) }, signal);
  if (check.damagedCount > 0) throw new Failure(`${path}: ${check.damagedCount} of its parts are damaged (${check.damaged.slice(0, 3).join(', ')}); pack it again from its source, or fetch it again`);
  const file = await open(path, 'r');
  try {
    const { chunks, sha256 } = await hashed(file, path, chunkPlan(info), info.fileBytes, (bytes) => tell(`hashing ${path}`, bytes), signal);
    const manifest = Buffer.from(ModelManifest.encode({ bytes: BigInt(info.fileBytes), sha256, modelHash: hash, chunks: chunks.map(({ bytes, sha256: of }) => ({ bytes, sha256: of })) }).finish());
    const manifestSha256 = createHash('sha256').update(manifest).digest();
    const blobs = new Map<string, Blob>(chunks.map((chunk) => [chunk.sha256.toString('hex'), { sha256: chunk.sha256, bytes: chunk.bytes, read: () => readAt(file, path, chunk) }]));
    blobs.set(manifestSha256.toString('hex'), { sha256: manifestSha256, bytes: manifest.length, read: async () => manifest });
    for (let tries = 1; ; tries += 1) {
      const sent = await sendMissing(operator, blobs, (bytes) => tell(`sending ${name}`, bytes), signal);
      try {
        return { model: await operator.putModel(name, manifestSha256.toString('hex')), ...sent };
      } catch (error) {
        // Somebody has removed a model meanwhile that had chunks of this one.
        if (statusOf(error) !== status.FAILED_PRECONDITION || tries === 3) throw error;
      }
    }
  } finally {
    await file.close();
  }
}

interface Blob { readonly sha256: Buffer; readonly bytes: number; read(): Promise<Buffer> }

async function hashed(file: FileHandle, path: string, plan: readonly ChunkPlace[], total: number, tell: (bytes: Bytes) => void, signal: AbortSignal): Promise<{ chunks: HashedChunk[]; sha256: Buffer }> {
  const whole = createHash('sha256');
  const chunks: HashedChunk[] = [];
  for (const place of plan) {
    signal.throwIfAborted();
    const data = await readAt(file, path, place);
    whole.update(data);
    chunks.push({ ...place, sha256: createHash('sha256').update(data).digest() });
    tell({ done: place.offset + place.bytes, total });
  }
  return { chunks, sha256: whole.digest() };
}

async function readAt(file: FileHandle, path: string, { offset, bytes }: ChunkPlace): Promise<Buffer> {
  return readExactly(file, offset, bytes).catch((error: unknown) => {
    throw error instanceof ShortFileError ? new Failure(`${path}: ended at byte ${error.endByte} while it was read; is something writing to it?`, undefined, { cause: error }) : error;
  });
}

async function sendMissing(operator: OperatorConnection, blobs: ReadonlyMap<string, Blob>, tell: (bytes: Bytes) => void, signal: AbortSignal): Promise<{ sentBytes: number; sentChunks: number }> {
  let [sentBytes, sentChunks] = [0, 0];
  for (let vain = 0; ;) {
    const before = sentChunks;
    try {
      const missing = await findMissing(operator, blobs);
      if (missing.length === 0) return { sentBytes, sentChunks };
      const total = sentBytes + missing.reduce((sum, { bytes }) => sum + bytes, 0);
      const left = missing.values();
      await together(Array.from({ length: STREAMS }, () => operator.putBlobs(reading(left), (bytes) => {
        sentBytes += bytes;
        sentChunks += 1;
        tell({ done: sentBytes, total });
      })));
    } catch (error) {
      if (!PASSING.includes(statusOf(error))) throw error;
      vain = sentChunks > before ? 1 : vain + 1;
      if (vain > MOST_VAIN_ROUNDS) throw error;
      await sleep(FIRST_WAIT_MS * 2 ** vain, undefined, { signal });
    }
  }
}

async function findMissing(operator: OperatorConnection, blobs: ReadonlyMap<string, Blob>): Promise<Blob[]> {
  const all = [...blobs.values()];
  const missing: Blob[] = [];
  for (let at = 0; at < all.length; at += ASKED_AT_ONCE) {
    for (const sha256 of await operator.findMissingBlobs(all.slice(at, at + ASKED_AT_ONCE).map((blob) => blob.sha256))) missing.push(blobs.get(sha256.toString('hex'))!);
  }
  return missing;
}

/** Streams that take turns at what is left. */
async function* reading(left: Iterator<Blob>): AsyncGenerator<{ sha256: Buffer; data: Buffer }> {
  for (let next = left.next(); !next.done; next = left.next()) yield { sha256: next.value.sha256, data: await next.value.read() };
}

/** Until all have ended, so that nothing goes on behind a failure. */
async function together(streams: Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(streams)).find((one) => one.status === 'rejected');
  if (failed) throw failed.reason;
}

function teller(listener: PushListener): (what: string, bytes: Bytes) => void {
  let [last, rate] = ['', new ByteRate()];
  return (what, bytes) => {
    if (what !== last) [last, rate] = [what, new ByteRate()];
    listener.progress(bytes.done / bytes.total, what, rate.text(bytes));
  };
}
