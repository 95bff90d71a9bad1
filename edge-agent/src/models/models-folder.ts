/**
 * The folder of fetched models: `<manifest SHA-256>.gguf`, its manifest beside it, and `.gguf.part` for the one on its way. A file
 * without `.part` was whole and verified when it got its name.
 */
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { mkdir, statfs } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { formatSize } from '@moefleet/runtime';
import { replaceFile } from '../whole-file';
import { type Manifest, readManifest } from './manifest';
import { syncFolder } from './part-file';

/** A disk that is full to the last block stops more than this agent. */
const RESERVE_BYTES = 256 * 1024 ** 2;
const RESERVE_SHARE = 0.05;
const PART = /^([0-9a-f]{64})\.gguf\.part$/;

/** The disk has no room; told before the first byte. */
export class DiskFullError extends Error {
  override readonly name = 'DiskFullError';
  constructor(folder: string, readonly needBytes: number, readonly haveBytes: number, reserveBytes: number) {
    super(`${folder}: ${formatSize(needBytes)} are needed and ${formatSize(Math.max(0, haveBytes))} free (${formatSize(reserveBytes)} are kept free); make room, or name another disk with --models-dir`);
  }
}

export class ModelsFolder {
  readonly path: string;

  constructor(path: string) {
    this.path = resolve(path);
  }

  async prepare(): Promise<void> {
    await mkdir(this.path, { recursive: true, mode: 0o700 });
  }

  modelPath(id: string): string {
    return join(this.path, `${id}.gguf`);
  }

  partPath(id: string): string {
    return `${this.modelPath(id)}.part`;
  }

  /** Hex of the manifest whose model the file is; null for a file that was not fetched. */
  idOf(modelPath: string): string | null {
    const match = /^([0-9a-f]{64})\.gguf$/.exec(basename(modelPath));
    return match && dirname(resolve(modelPath)) === this.path ? match[1]! : null;
  }

  /** Of whole models. */
  ids(): string[] {
    return this.names().flatMap((name) => this.idOf(join(this.path, name)) ?? []);
  }

  isWhole(id: string): boolean {
    return existsSync(this.modelPath(id));
  }

  /** What is kept of it; null where there is none, or a damaged one. */
  manifest(id: string): Manifest | null {
    try {
      const bytes = this.manifestBytes(id);
      return readManifest(bytes, id);
    } catch {
      return null;
    }
  }

  /** Throws where there is none. */
  manifestBytes(id: string): Buffer {
    return readFileSync(this.manifestPath(id));
  }

  keepManifest(id: string, serialised: Uint8Array): void {
    replaceFile(this.manifestPath(id), serialised);
  }

  /** What a whole model that may be damaged has goes on as a part. */
  reopen(id: string): void {
    if (this.isWhole(id)) renameSync(this.modelPath(id), this.partPath(id));
  }

  /** The part is whole. */
  async finish(id: string): Promise<void> {
    renameSync(this.partPath(id), this.modelPath(id));
    await syncFolder(this.path);
  }

  /** Removes all whole models but this one; a part stays for whoever goes on with it. Gives the ids of what went. */
  dropOthers(keep: string | null): string[] {
    const gone = this.ids().filter((id) => id !== keep);
    for (const id of gone) {
      rmSync(this.modelPath(id), { force: true });
      rmSync(this.manifestPath(id), { force: true });
    }
    return gone;
  }

  /** Removes parts but this model's. Gives the ids of what went. */
  dropParts(keep: string | null): string[] {
    return this.removeParts((id) => id !== keep);
  }

  /** Removes parts that nothing was written to since then (of the epoch). */
  dropOldParts(beforeMs: number): string[] {
    return this.removeParts((id) => (changedMs(this.partPath(id)) ?? Infinity) < beforeMs);
  }

  private removeParts(which: (id: string) => boolean): string[] {
    const gone = this.names().flatMap((name) => PART.exec(name)?.[1] ?? []).filter(which);
    for (const id of gone) {
      rmSync(this.partPath(id), { force: true });
      if (!this.isWhole(id)) rmSync(this.manifestPath(id), { force: true });
    }
    return gone;
  }

  /** Throws DiskFullError where the disk has no room for what is not yet allocated of a model's part. */
  async checkRoom(id: string, bytes: number): Promise<void> {
    const { bsize, bavail, blocks } = await statfs(this.path);
    const reserve = Math.min(RESERVE_BYTES, Math.floor(RESERVE_SHARE * blocks * bsize));
    const need = Math.max(0, bytes - allocatedBytes(this.partPath(id)));
    const have = bavail * bsize - reserve;
    if (need > have) throw new DiskFullError(this.path, need, have, reserve);
  }

  private manifestPath(id: string): string {
    return join(this.path, `${id}.manifest`);
  }

  private names(): string[] {
    try {
      return readdirSync(this.path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
  }
}

/** null: it is not there */
function changedMs(path: string): number | null {
  try {
    return statSync(path).mtimeMs;
  } catch {
    return null;
  }
}

function allocatedBytes(path: string): number {
  try {
    return 512 * statSync(path).blocks;
  } catch {
    return 0;
  }
}
