/**
 * Brings one model to this disk: its manifest, then what is missing of it, from models that are here already, from devices beside
 * this one and from the coordinator. Whoever sends, a chunk counts when it has its SHA-256 and is on the disk.
 *
 * Invariant: of what is under way from the coordinator and not yet on the disk there is at most as much as the model's largest chunk,
 * so that a power cut costs that link at most that; from devices beside this one at most as much again, so that a chunk that comes
 * slowly holds nothing up that lies next door. Chunks smaller than it come several at a time, a large one in several ranges.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { backoffMs, fileSha256, type Logger } from '@moefleet/runtime';
import { BlobAnswerError } from './blob-client';
import { type CoordinatorBlobs, GivenUpError } from './coordinator-blobs';
import type { FetchProgress } from './fetch-progress';
import { type Chunk, type Manifest, ManifestError, MAX_MANIFEST_BYTES, readManifest, short } from './manifest';
import type { ModelsFolder } from './models-folder';
import { PartFile, readVerified, verify, WrongBytesError } from './part-file';
import type { NextFetch, Peer, PeerSet } from './peer-set';

const CHUNKS_AT_ONCE = 8;
/** How long the coordinator is let be when it has failed while somebody beside this device could be asked. */
const AFTER_GIVING_UP = { baseMs: 2_000, maxMs: 30_000, random: Math.random };
/** HTTP statuses of a device that is well: has it not, does not know this one yet, has no time. */
const NOT_YET = new Set([403, 404, 429, 503]);
const WHOLE_TRIES = 2;

export interface WantedModel {
  /** hex; names the model */
  readonly manifestSha256: string;
  readonly bytes: number;
}

export interface ModelFetchOptions {
  folder: ModelsFolder;
  coordinator: CoordinatorBlobs;
  peers: PeerSet;
  /** a file that was not fetched and may be the same model */
  setUpPath: string | null;
  /** all of the file is there: rejects where its experts are not what their checksums say, or it is no model */
  check: (path: string, signal: AbortSignal) => Promise<void>;
  /** the part is open: others may have what is in it */
  onPart: (part: PartFile) => void;
  log: Logger;
}

/**
 * Resolves when the model is whole, verified and under its name. Rejects with DiskFullError before the first byte, ManifestError,
 * BlobGoneError, what `check` rejects with, the file system's error, or when `signal` aborts.
 */
export async function fetchModel(wanted: WantedModel, options: ModelFetchOptions, progress: FetchProgress, signal: AbortSignal): Promise<void> {
  try {
    await fetchWhole(wanted, options, progress, signal);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}

async function fetchWhole(wanted: WantedModel, options: ModelFetchOptions, progress: FetchProgress, signal: AbortSignal): Promise<void> {
  const { folder, log } = options;
  const id = wanted.manifestSha256;
  await folder.prepare();
  folder.reopen(id);
  folder.dropParts(id);
  await folder.checkRoom(id, wanted.bytes);
  const manifest = await theManifest(wanted, options, progress, signal);
  const part = await PartFile.open(folder.partPath(id), manifest);
  try {
    await part.recover(() => signal.throwIfAborted());
    progress.bytesDone = part.bytesHeld;
    options.onPart(part);
    for (let tries = 1; ; tries += 1) {
      await fillFromDisk(part, options, progress, signal);
      await new ChunkLoop(part, options, progress, signal).run();
      progress.enter('checking the file');
      const found = await fileSha256(part.path);
      signal.throwIfAborted();
      if (found === manifest.sha256) break;
      if (tries === WHOLE_TRIES) throw new WrongBytesError(`model ${short(id)}: the file has SHA-256 ${short(found)}, ${short(manifest.sha256)} was announced, though each chunk is right`);
      // Each was right when it was written: the disk has changed one since.
      await part.recover(() => signal.throwIfAborted());
    }
    progress.enter('checking the experts');
    await options.check(part.path, signal).catch(async (error: Error) => {
      signal.throwIfAborted();
      // As it was pushed, and of no use: the room is worth more.
      await rm(part.path, { force: true });
      throw error;
    });
  } finally {
    await part.close();
  }
  await folder.finish(id);
  log.info({ model: short(id), bytes: manifest.bytes, ...progress.sources }, 'a model has been fetched');
}

async function theManifest({ manifestSha256: id, bytes }: WantedModel, { folder, coordinator, peers }: ModelFetchOptions, progress: FetchProgress, signal: AbortSignal): Promise<Manifest> {
  const kept = folder.manifest(id);
  if (kept?.bytes === bytes) return kept;
  await coordinator.untilLoud(progress, signal);
  const serialised = await manifestOfPeers(id, bytes, peers, progress, signal) ?? await coordinator.manifest(id, progress, signal);
  const manifest = readManifest(serialised, id, bytes);
  folder.keepManifest(id, serialised);
  return manifest;
}

/** Checked; null where nobody beside this device has it. */
async function manifestOfPeers(id: string, bytes: number, peers: PeerSet, progress: FetchProgress, signal: AbortSignal): Promise<Buffer | null> {
  for (const peer of peers.whole()) {
    const parts: Buffer[] = [];
    try {
      await peer.client.read({ sha256: id, offset: 0, bytes: MAX_MANIFEST_BYTES }, (part) => {
        parts.push(part);
        progress.arrived(part.length, 'peers');
      }, signal);
      const serialised = Buffer.concat(parts);
      readManifest(serialised, id, bytes);
      return serialised;
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ManifestError) peers.lied(peer, error.message);
      else peers.failed(peer, (error as Error).message);
    }
  }
  return null;
}

/** From models that lie here already, each piece verified before it is taken. */
async function fillFromDisk(part: PartFile, { folder, setUpPath }: ModelFetchOptions, progress: FetchProgress, signal: AbortSignal): Promise<void> {
  const places = new Map<string, { path: string; offset: number }>();
  for (const id of folder.ids()) {
    for (const { sha256, offsets } of folder.manifest(id)?.chunks ?? []) places.set(sha256, { path: folder.modelPath(id), offset: offsets[0]! });
  }
  const same = setUpPath === null ? null : await openIfSize(setUpPath, part.manifest.bytes);
  const open = new Map<string, FileHandle>();
  try {
    for (const chunk of part.missing()) {
      signal.throwIfAborted();
      const place = places.get(chunk.sha256);
      const data = (place ? await readAt(open, place, chunk) : null) ?? (same ? await readVerified(same, chunk, chunk.offsets[0]!) : null);
      if (!data) continue;
      await part.put(chunk, data);
      progress.done(chunk.bytes * chunk.offsets.length, 'disk');
    }
  } finally {
    await same?.close();
    for (const file of open.values()) await file.close();
  }
}

async function readAt(files: Map<string, FileHandle>, { path, offset }: { path: string; offset: number }, chunk: Chunk): Promise<Buffer | null> {
  const file = files.get(path) ?? await open(path, 'r').catch(() => null);
  if (!file) return null;
  files.set(path, file);
  return readVerified(file, chunk, offset);
}

/** null where the file has another size, or is not there. */
async function openIfSize(path: string, bytes: number): Promise<FileHandle | null> {
  const file = await open(path, 'r').catch(() => null);
  if (!file) return null;
  if ((await file.stat()).size === bytes) return file;
  await file.close();
  return null;
}

/** Fetches what is missing, as many chunks at a time as the invariant lets. */
class ChunkLoop {
  private readonly running = new Map<string, Promise<void>>();
  private readonly bytesUnderWay = { coordinator: 0, peer: 0 };
  private failure: Error | null = null;
  private coordinatorFromMs = 0;
  private failures = 0;
  private trouble: string | null = null;
  private wasQuiet = false;
  private readonly ended = new AbortController();
  private readonly signal: AbortSignal;

  constructor(private readonly part: PartFile, private readonly options: ModelFetchOptions, private readonly progress: FetchProgress, outer: AbortSignal) {
    this.signal = AbortSignal.any([outer, this.ended.signal]);
  }

  async run(): Promise<void> {
    try {
      for (;;) {
        if (this.failure) throw this.failure;
        this.signal.throwIfAborted();
        const missing = this.part.missing().filter(({ sha256 }) => !this.running.has(sha256));
        if (missing.length === 0 && this.running.size === 0) return;
        if (missing.length === 0 || !await this.startOne(missing)) await this.oneEnds();
      }
    } finally {
      this.ended.abort();
      await Promise.allSettled(this.running.values());
    }
  }

  /** False where one that runs has to end first. */
  private async startOne(missing: readonly Chunk[]): Promise<boolean> {
    const { peers } = this.options;
    const most = this.part.manifest.largestChunkBytes;
    const room = { coordinator: this.coordinatorFree() ? most - this.bytesUnderWay.coordinator : 0, peer: most - this.bytesUnderWay.peer };
    const fitting = missing.filter(({ bytes }) => bytes <= Math.max(most - this.bytesUnderWay.coordinator, room.peer));
    if (fitting.length === 0 || this.running.size >= CHUNKS_AT_ONCE) return false;
    const next = peers.next(fitting, room);
    if (next.t === 'wait') {
      await this.pause(next.ms);
      return true;
    }
    this.bytesUnderWay[next.t] += next.chunk.bytes;
    const work = this.bring(next).catch((error: Error) => { this.failure ??= error; }).finally(() => {
      this.bytesUnderWay[next.t] -= next.chunk.bytes;
      this.running.delete(next.chunk.sha256);
    });
    this.running.set(next.chunk.sha256, work);
    return true;
  }

  /** At once where none runs any more. */
  private async oneEnds(): Promise<void> {
    if (this.running.size > 0) await Promise.race(this.running.values());
  }

  private async bring(next: Exclude<NextFetch, { t: 'wait' }>): Promise<void> {
    const { chunk } = next;
    if (next.t === 'peer') return void await this.fromPeer(next.peer, chunk);
    for (const peer of next.before) if (await this.fromPeer(peer, chunk)) return;
    const { coordinator, peers } = this.options;
    const beganMs = performance.now();
    try {
      const data = await coordinator.chunk(chunk, this.progress, this.signal, () => peers.anyReady());
      this.failures = 0;
      this.trouble = null;
      peers.chunkTook(performance.now() - beganMs);
      await this.keep(chunk, data, 'coordinator');
    } catch (error) {
      if (!(error instanceof GivenUpError)) throw error;
      this.trouble = error.message;
      this.coordinatorFromMs = performance.now() + backoffMs(this.failures, AFTER_GIVING_UP);
      this.failures += 1;
    }
  }

  private async fromPeer(peer: Peer, chunk: Chunk): Promise<boolean> {
    const data = await this.readFromPeer(peer, chunk);
    if (data) await this.keep(chunk, data, 'peers');
    return data !== null;
  }

  /** Verified; null where it does not have it, and what comes of that is settled. */
  private async readFromPeer(peer: Peer, chunk: Chunk): Promise<Buffer | null> {
    const { peers } = this.options;
    const parts: Buffer[] = [];
    try {
      const total = await peer.client.read({ sha256: chunk.sha256, offset: 0, bytes: chunk.bytes }, (part) => {
        parts.push(part);
        this.progress.arrived(part.length, 'peers');
      }, this.signal);
      if (total !== chunk.bytes) throw new WrongBytesError(`chunk ${short(chunk.sha256)} has ${total} bytes there`);
      const data = Buffer.concat(parts);
      verify(chunk, data);
      peers.delivered(peer);
      return data;
    } catch (error) {
      this.signal.throwIfAborted();
      if (error instanceof WrongBytesError) peers.lied(peer, error.message);
      else if (error instanceof BlobAnswerError && NOT_YET.has(error.status)) peers.notYet(peer, error.retryAfterMs, error.held);
      else peers.failed(peer, (error as Error).message);
      return null;
    }
  }

  private async keep(chunk: Chunk, data: Buffer, from: 'coordinator' | 'peers'): Promise<void> {
    await this.part.put(chunk, data);
    this.progress.done(chunk.bytes * chunk.offsets.length, from);
  }

  private coordinatorFree(): boolean {
    const quiet = this.options.coordinator.quiet() !== null;
    if (this.wasQuiet && !quiet) this.options.peers.afresh();
    this.wasQuiet = quiet;
    return !quiet && performance.now() >= this.coordinatorFromMs;
  }

  private async pause(ms: number): Promise<void> {
    const why = this.options.coordinator.quiet()?.reason ?? (this.trouble === null ? 'devices beside this one fetch what is missing' : `the coordinator is away: ${this.trouble}`);
    const over = this.progress.waitsFor(why);
    const timer = new AbortController();
    try {
      await Promise.race([delay(ms, undefined, { signal: AbortSignal.any([this.signal, timer.signal]) }), this.options.peers.changed(), ...this.running.values()]);
    } finally {
      timer.abort();
      over();
    }
  }
}
