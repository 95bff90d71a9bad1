/**
 * Bytes by their SHA-256: chunks of models and the lists of them. What comes is checked before it is kept, so a name
 * stands for its content; what no longer has its hash when it is read is thrown away, so that the next push brings it again.
 */
import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import type { ByteRange } from '@moefleet/runtime';
import { InvalidRequestError, NotAllowedNowError } from '../errors';
import { checkSha256 } from '../names';
import { type ObjectStore, readWhole } from './object-store';

/** The list of a model's chunks is one too; a chunk is 2 MiB at most. */
export const MOST_BLOB_BYTES = 15 * 1024 * 1024;
/** Looked up at once. */
const LOOK_UPS = 64;
export const BLOBS = 'chunks';

export class BlobStore {
  /** `objects` null: this coordinator keeps none. */
  constructor(private readonly objects: ObjectStore | null) {}

  get kept(): boolean {
    return this.objects !== null;
  }

  /** Throws NotAllowedNowError where none is. */
  get store(): ObjectStore {
    if (!this.objects) throw new NotAllowedNowError('this coordinator keeps no models; start it with --artifact-dir FOLDER or --artifact-s3 s3://BUCKET/PREFIX');
    return this.objects;
  }

  /** Throws InvalidRequestError where the bytes have another hash. */
  async put(sha256: string, data: Buffer): Promise<void> {
    const key = blobKey(sha256);
    if (data.length === 0 || data.length > MOST_BLOB_BYTES) throw new InvalidRequestError('data', `${data.length} bytes`, `from 1 to ${MOST_BLOB_BYTES}`);
    const found = createHash('sha256').update(data).digest('hex');
    if (found !== sha256) throw new InvalidRequestError('data', `${data.length} bytes with SHA-256 ${found.slice(0, 12)}`, `what has the SHA-256 ${sha256.slice(0, 12)} that it came with; send it again`);
    await this.store.put(key, data);
  }

  /** null: not there */
  async size(sha256: string): Promise<number | null> {
    return this.store.size(blobKey(sha256));
  }

  /** In the order asked. */
  async sizes(hashes: readonly string[]): Promise<(number | null)[]> {
    const sizes = new Array<number | null>(hashes.length).fill(null);
    const left = hashes.entries();
    await Promise.all(Array.from({ length: LOOK_UPS }, async () => {
      for (const [at, sha256] of left) sizes[at] = await this.size(sha256);
    }));
    return sizes;
  }

  /** null: not there. Ends with an error, and forgets the blob, where all of it was read and is not what it shall be. */
  async read(sha256: string, range?: ByteRange): Promise<Readable | null> {
    const stream = await this.store.read(blobKey(sha256), range);
    return stream && (range ? stream : Readable.from(this.checked(stream, sha256), { objectMode: false, highWaterMark: 1 }));
  }

  /** null: not there, damaged, or no list of chunks for its size. */
  async readWhole(sha256: string): Promise<Buffer | null> {
    const data = await readWhole(this.store, blobKey(sha256), MOST_BLOB_BYTES);
    if (!data || createHash('sha256').update(data).digest('hex') === sha256) return data;
    await this.remove(sha256);
    return null;
  }

  async remove(sha256: string): Promise<void> {
    await this.store.remove(blobKey(sha256));
  }

  private async *checked(stream: Readable, sha256: string): AsyncGenerator<Buffer> {
    const hash = createHash('sha256');
    // The last part is held back until the hash is known: nobody gets a damaged blob to its end.
    let last: Buffer | null = null;
    for await (const part of stream as AsyncIterable<Buffer>) {
      hash.update(part);
      if (last) yield last;
      last = part;
    }
    if (hash.digest('hex') !== sha256) {
      await this.remove(sha256);
      throw new DamagedBlobError(sha256, this.store.place);
    }
    if (last) yield last;
  }
}

export class DamagedBlobError extends Error {
  override readonly name = 'DamagedBlobError';
  constructor(readonly sha256: string, place: string) {
    super(`${sha256} in ${place} was damaged and is removed; push its model again: moefleet model push`);
  }
}

/** Throws InvalidRequestError for what is no hash. */
export function blobKey(sha256: string): string {
  checkSha256('sha256', sha256);
  // So that no folder holds a hundred thousand files.
  return `${BLOBS}/${sha256.slice(0, 2)}/${sha256}`;
}
