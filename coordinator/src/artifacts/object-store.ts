/**
 * Where bytes lie that coordinators of a fleet share: small files by key, each whole or not there, whoever writes at the
 * same time and whenever the power goes. A folder (folder-objects.ts) or a bucket (s3-objects.ts); what the bytes mean is
 * the business of blob-store.ts and model-store.ts.
 */
import type { Readable } from 'node:stream';
import type { ByteRange } from '@moefleet/runtime';
import { InvalidRequestError } from '../errors';

export interface StoredObject {
  readonly key: string;
  readonly bytes: number;
  readonly modifiedMs: number;
}

export interface ObjectStore {
  /** for people: a folder, or s3://bucket/prefix */
  readonly place: string;
  /** Replaces what is there. On the disk, or with the service, when it resolves. */
  put(key: string, data: Buffer): Promise<void>;
  /** null: not there */
  size(key: string): Promise<number | null>;
  /** `range` within the object, all of it by default; null: not there. */
  read(key: string, range?: ByteRange): Promise<Readable | null>;
  /** Every object whose key begins with `folder` and a slash, in no order. */
  list(folder: string): AsyncIterable<StoredObject>;
  /** Nothing happens where there is none. */
  remove(key: string): Promise<void>;
  stop(): void;
}

const KEY = /^[a-z]+(?:\/[A-Za-z0-9][A-Za-z0-9._+-]{0,199}){1,3}$/;

/** No key leaves its store or hides in it. */
export function checkKey(key: string): string {
  if (!KEY.test(key)) throw new InvalidRequestError('key', key, 'a key of a stored object');
  return key;
}

/** All of a small object; null: not there, or larger. */
export async function readWhole(store: ObjectStore, key: string, mostBytes: number): Promise<Buffer | null> {
  const stream = await store.read(key);
  if (!stream) return null;
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of stream as AsyncIterable<Buffer>) {
    bytes += part.length;
    // Leaving the loop closes what it reads from.
    if (bytes > mostBytes) return null;
    parts.push(part);
  }
  return Buffer.concat(parts);
}
