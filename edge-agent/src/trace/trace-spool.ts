/**
 * Finished batches of spans on disk, oldest first, within a bound in bytes. Each batch is one file, written under a
 * temporary name and renamed, so that a file with its final name is whole unless the disk itself lost it; its
 * SHA-256 tells. No fsync: a power cut may cost the last batches, which then count as dropped, and flash is spared a
 * flush per batch.
 *
 * The misses of a batch are in its file name, so that the account holds without opening it and even where its
 * content is lost. Past the bound the oldest batches go first; the one being sent stays.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger, Service } from '@moefleet/runtime';
import type { MissAccount } from './miss-account';

/** 8 bytes of magic, 32 of SHA-256 over the body, then the body: an ExportTraceServiceRequest. */
const MAGIC = Buffer.from('MFTRACE1');
const HEADER_BYTES = MAGIC.length + 32;
const FILE_NAME = /^(\d{12})-(\d+)m-(\d+)s\.otlp$/;

export interface SpooledBatch {
  readonly file: string;
  readonly spans: number;
  readonly misses: number;
  /** with the header */
  readonly bytes: number;
}

interface Entry extends SpooledBatch {
  /** settles when the file is on disk, true, or could not be written, false */
  written: Promise<boolean>;
}

export interface TraceSpoolOptions {
  folder: string;
  maxBytes: number;
  account: MissAccount;
  log: Logger;
}

export class TraceSpool implements Service {
  readonly name = 'trace spool';
  private readonly entries: Entry[] = [];
  private readonly listeners = new Set<() => void>();
  private nextNumber = 1;
  private heldBytes = 0;
  private sending: Entry | null = null;
  private writing: Promise<unknown> = Promise.resolve();
  private writeFailing = false;
  private droppedSpanCount = 0;

  constructor(private readonly options: TraceSpoolOptions) {}

  get bytes(): number {
    return this.heldBytes;
  }

  get batches(): number {
    return this.entries.length;
  }

  get droppedSpans(): number {
    return this.droppedSpanCount;
  }

  /** Takes up what an earlier boot left; throws where the folder cannot be made or read. */
  async start(): Promise<void> {
    const { folder, account, log } = this.options;
    await mkdir(folder, { recursive: true });
    const names = (await readdir(folder)).sort();
    for (const name of names) {
      if (name.endsWith('.tmp')) await rm(join(folder, name), { force: true });
      const match = FILE_NAME.exec(name);
      if (!match) continue;
      const { size } = await stat(join(folder, name));
      const [misses, spans] = [Number(match[2]), Number(match[3])];
      this.entries.push({ file: join(folder, name), spans, misses, bytes: size, written: Promise.resolve(true) });
      this.heldBytes += size;
      this.nextNumber = Number(match[1]) + 1;
      account.inherit(misses);
    }
    if (this.entries.length > 0) log.info({ batches: this.entries.length, bytes: this.heldBytes }, 'trace spool taken up');
    this.dropBeyondBound();
  }

  /** Returns when nothing is being written any more. */
  async stop(): Promise<void> {
    await this.flushed();
  }

  async flushed(): Promise<void> {
    let seen: Promise<unknown>;
    do {
      seen = this.writing;
      await seen;
    } while (seen !== this.writing);
  }

  onPut(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Counts the batch's misses as spooled at once; the file follows. */
  put(body: Uint8Array, spans: number, misses: number): void {
    const number = String(this.nextNumber).padStart(12, '0');
    this.nextNumber += 1;
    const file = join(this.options.folder, `${number}-${misses}m-${spans}s.otlp`);
    const bytes = HEADER_BYTES + body.length;
    const written = this.writing.then(() => this.write(entry, body));
    const entry: Entry = { file, spans, misses, bytes, written };
    this.writing = written;
    this.entries.push(entry);
    this.heldBytes += bytes;
    this.options.account.enter(misses, 'spooled');
    this.dropBeyondBound();
    for (const listener of this.listeners) listener();
  }

  /**
   * The oldest batch and its body, which then stays until `settle` or `release`; null where there is none. Batches
   * whose file is gone or damaged are dropped on the way.
   */
  async take(): Promise<{ batch: SpooledBatch; body: Uint8Array } | null> {
    for (;;) {
      const entry = this.entries[0];
      if (!entry) return null;
      this.sending = entry;
      const body = (await entry.written) ? await this.read(entry) : null;
      if (body) return { batch: entry, body };
      this.sending = null;
      this.drop(entry, 'trace batch cannot be read back, dropped');
    }
  }

  /** The taken batch was delivered, save `droppedMisses` and `droppedSpans` of it that were refused. */
  settle(batch: SpooledBatch, droppedMisses: number, droppedSpans: number): void {
    this.sending = null;
    const entry = this.remove(batch.file);
    if (!entry) return;
    this.droppedSpanCount += droppedSpans;
    this.options.account.settle(entry.misses - droppedMisses, 'exported');
    this.options.account.settle(droppedMisses, 'dropped');
  }

  /** The taken batch stays for a later try. */
  release(): void {
    this.sending = null;
    this.dropBeyondBound();
  }

  private async write(entry: Entry, body: Uint8Array): Promise<boolean> {
    if (!this.entries.includes(entry)) return false;
    const temporary = `${entry.file}.tmp`;
    try {
      await writeFile(temporary, Buffer.concat([MAGIC, createHash('sha256').update(body).digest(), body]));
      await rename(temporary, entry.file);
      if (this.writeFailing) this.options.log.info({ folder: this.options.folder }, 'trace spool writes again');
      this.writeFailing = false;
      return true;
    } catch (err) {
      if (!this.writeFailing) this.options.log.error({ err, folder: this.options.folder }, 'trace spool cannot write; batches are dropped and counted');
      this.writeFailing = true;
      await rm(temporary, { force: true }).catch(() => {});
      if (this.sending !== entry) this.drop(entry, null);
      return false;
    }
  }

  private async read(entry: Entry): Promise<Uint8Array | null> {
    const content = await readFile(entry.file).catch(() => null);
    if (!content || content.length < HEADER_BYTES || !content.subarray(0, MAGIC.length).equals(MAGIC)) return null;
    const body = content.subarray(HEADER_BYTES);
    const digest = createHash('sha256').update(body).digest();
    return digest.equals(content.subarray(MAGIC.length, HEADER_BYTES)) ? body : null;
  }

  private dropBeyondBound(): void {
    let dropped = 0;
    let misses = 0;
    while (this.heldBytes > this.options.maxBytes) {
      const oldest = this.entries.find((entry) => entry !== this.sending);
      if (!oldest) break;
      dropped += 1;
      misses += oldest.misses;
      this.drop(oldest, null);
    }
    if (dropped > 0) {
      this.options.log.warn({ batches: dropped, misses, maxBytes: this.options.maxBytes }, 'trace spool is full, oldest batches dropped');
    }
  }

  private drop(entry: Entry, why: string | null): void {
    if (!this.remove(entry.file)) return;
    this.droppedSpanCount += entry.spans;
    this.options.account.settle(entry.misses, 'dropped');
    if (why) this.options.log.warn({ file: entry.file, spans: entry.spans, misses: entry.misses }, why);
  }

  private remove(file: string): Entry | null {
    const index = this.entries.findIndex((entry) => entry.file === file);
    if (index < 0) return null;
    const [entry] = this.entries.splice(index, 1);
    this.heldBytes -= entry!.bytes;
    this.writing = this.writing.then(() => rm(file, { force: true }).catch(() => {}));
    return entry!;
  }
}
