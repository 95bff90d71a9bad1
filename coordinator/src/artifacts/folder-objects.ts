/** Objects as files of a folder. A file is written beside its place, synced, and renamed; its folder is synced after that. */
import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import type { ByteRange } from '@moefleet/runtime';
import { StoreFailedError } from '../errors';
import { checkKey, type ObjectStore, type StoredObject } from './object-store';

const PART_BYTES = 256 * 1024;
const INCOMING = 'incoming';

export class FolderObjects implements ObjectStore {
  constructor(readonly place: string) {}

  async put(key: string, data: Buffer): Promise<void> {
    const target = this.path(key);
    const part = join(this.place, INCOMING, randomUUID());
    await this.trying(async () => {
      await Promise.all([mkdir(dirname(target), { recursive: true }), mkdir(dirname(part), { recursive: true })]);
      try {
        await writeSynced(part, data);
        await rename(part, target);
        await syncFolder(dirname(target));
      } finally {
        await rm(part, { force: true });
      }
    });
  }

  size(key: string): Promise<number | null> {
    return this.trying(async () => {
      const found = await orAbsent(stat(this.path(key)));
      return found?.isFile() ? found.size : null;
    });
  }

  read(key: string, range?: ByteRange): Promise<Readable | null> {
    return this.trying(async () => {
      const file = await orAbsent(open(this.path(key), 'r'));
      return file && file.createReadStream({ ...range, highWaterMark: PART_BYTES });
    });
  }

  async *list(folder: string): AsyncIterable<StoredObject> {
    const entries = await this.trying(() => orAbsent(readdir(join(this.place, folder), { withFileTypes: true }))) ?? [];
    for (const entry of entries) {
      const key = `${folder}/${entry.name}`;
      if (entry.isDirectory()) yield* this.list(key);
      const found = entry.isFile() ? await this.trying(() => orAbsent(stat(join(this.place, key)))) : null;
      if (found) yield { key, bytes: found.size, modifiedMs: found.mtimeMs };
    }
  }

  async remove(key: string): Promise<void> {
    await this.trying(() => rm(this.path(key), { force: true }));
  }

  stop(): void {}

  private path(key: string): string {
    return join(this.place, ...checkKey(key).split('/'));
  }

  private async trying<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === undefined) throw error;
      throw new StoreFailedError(this.place, error);
    }
  }
}

async function writeSynced(path: string, data: Buffer): Promise<void> {
  const file = await open(path, 'wx', 0o644);
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Or a file that was renamed into it may be gone after a power cut. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function orAbsent<T>(found: Promise<T>): Promise<T | null> {
  return found.catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null;
    throw error;
  });
}
