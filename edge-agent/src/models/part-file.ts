/**
 * The file of a model that is on its way. A chunk is in it when its bytes have been verified and are on the disk; what was there
 * before a restart counts only as far as it verifies again, so there is no journal that could lie.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { readExactly } from '@moefleet/runtime';
import type { Chunk, Manifest } from './manifest';

/** Bytes have not the SHA-256 that they came under. */
export class WrongBytesError extends Error {
  override readonly name = 'WrongBytesError';
}

export class PartFile {
  private readonly held = new Set<string>();
  private heldBytes = 0;

  private constructor(readonly path: string, readonly manifest: Manifest, private readonly file: FileHandle) {}

  /** Makes the file, with all its room, or takes up the one that is there. Rejects with the file system's error. */
  static async open(path: string, manifest: Manifest): Promise<PartFile> {
    const file = await open(path, 'r+').catch(() => open(path, 'wx+', 0o600));
    try {
      if ((await file.stat()).size !== manifest.bytes) {
        await allocate(path, file, manifest.bytes);
        await file.sync();
        await syncFolder(dirname(path));
      }
      return new PartFile(path, manifest, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Looks what of it verifies; `between` is asked before each chunk and may throw. */
  async recover(between: () => void = () => {}): Promise<void> {
    for (const chunk of this.manifest.chunks) {
      between();
      const good: number[] = [];
      for (const offset of chunk.offsets) if (await holds(this.file, chunk, offset)) good.push(offset);
      if (good.length === chunk.offsets.length) this.count(chunk);
      else if (good.length > 0) await this.put(chunk, await readExactly(this.file, good[0]!, chunk.bytes));
    }
  }

  has(sha256: string): boolean {
    return this.held.has(sha256);
  }

  get bytesHeld(): number {
    return this.heldBytes;
  }

  /** Of the file. */
  missing(): Chunk[] {
    return this.manifest.chunks.filter(({ sha256 }) => !this.held.has(sha256));
  }

  /** On the disk when it resolves. WrongBytesError, or the file system's error. */
  async put(chunk: Chunk, data: Buffer): Promise<void> {
    verify(chunk, data);
    for (const offset of chunk.offsets) await writeFull(this.file, data, offset);
    await this.file.datasync();
    this.count(chunk);
  }

  close(): Promise<void> {
    return this.file.close();
  }

  private count(chunk: Chunk): void {
    if (this.held.has(chunk.sha256)) return;
    this.held.add(chunk.sha256);
    this.heldBytes += chunk.bytes * chunk.offsets.length;
  }
}

/** Throws WrongBytesError. */
export function verify({ sha256, bytes }: Pick<Chunk, 'sha256' | 'bytes'>, data: Buffer): void {
  const found = createHash('sha256').update(data).digest('hex');
  if (data.length !== bytes || found !== sha256) throw new WrongBytesError(`chunk ${sha256.slice(0, 12)}: ${data.length} bytes with SHA-256 ${found.slice(0, 12)}, ${bytes} were expected`);
}

/** The bytes at `offset` of a file where they are the chunk; else null. */
export async function readVerified(file: FileHandle, chunk: Pick<Chunk, 'sha256' | 'bytes'>, offset: number): Promise<Buffer | null> {
  try {
    const data = await readExactly(file, offset, chunk.bytes);
    verify(chunk, data);
    return data;
  } catch {
    return null;
  }
}

async function holds(file: FileHandle, chunk: Chunk, offset: number): Promise<boolean> {
  return (await readVerified(file, chunk, offset)) !== null;
}

async function writeFull(file: FileHandle, data: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < data.length;) done += (await file.write(data, done, data.length - done, offset + done)).bytesWritten;
}

/** Node has no call that reserves room; where the program or the file system has none either, the file is only as long as it has to be. */
async function allocate(path: string, file: FileHandle, bytes: number): Promise<void> {
  await file.truncate(bytes);
  try {
    await promisify(execFile)('fallocate', ['--length', String(bytes), path], { env: { ...process.env, LC_ALL: 'C' } });
  } catch (error) {
    if (/No space left/.test((error as Error).message)) throw Object.assign(new Error(`${path}: no space left for its ${bytes} bytes`, { cause: error }), { code: 'ENOSPC' });
  }
}

export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
