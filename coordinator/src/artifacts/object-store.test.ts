import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { InvalidRequestError, NotAllowedNowError, StoreFailedError } from '../errors';
import { S3_CREDENTIALS, startS3 } from '../testing/s3-server';
import { blobKey, BlobStore, MOST_BLOB_BYTES } from './blob-store';
import { FolderObjects } from './folder-objects';
import { type ObjectStore, readWhole } from './object-store';
import { S3Objects } from './s3-objects';

interface Kind {
  store(prefix: string): ObjectStore;
  /** overwrites behind the store's back */
  damage(store: ObjectStore, key: string, data: Buffer): Promise<void>;
  broken(): ObjectStore;
}

let folder: string;
let s3: Awaited<ReturnType<typeof startS3>>;
const environment = { ...process.env };
beforeAll(async () => {
  Object.assign(process.env, S3_CREDENTIALS);
  folder = mkdtempSync(join(tmpdir(), 'moefleet-objects-'));
  s3 = await startS3(folder, 'fleet');
});
afterAll(async () => {
  await s3.close();
  rmSync(folder, { recursive: true, force: true });
  process.env = environment;
});

const KINDS: [string, Kind][] = [
  ['a folder', {
    store: (prefix) => new FolderObjects(join(folder, prefix)),
    damage: async (store, key, data) => writeFileSync(join(store.place, key), data),
    broken() {
      writeFileSync(join(folder, 'a-file'), '');
      return new FolderObjects(join(folder, 'a-file'));
    },
  }],
  ['a bucket', {
    store: (prefix) => new S3Objects({ bucket: 'fleet', prefix, endpoint: s3.endpoint, region: '' }),
    damage: (store, key, data) => store.put(key, data),
    broken: () => new S3Objects({ bucket: 'fleet', prefix: '', endpoint: 'http://127.0.0.1:1', region: '' }),
  }],
];

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');
async function all(stream: AsyncIterable<Buffer> | null): Promise<Buffer | null> {
  if (!stream) return null;
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}
async function keys(store: ObjectStore, under: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of store.list(under)) found.push(key);
  return found.sort();
}

describe.each(KINDS)('objects in %s', (name, kind) => {
  const stores: ObjectStore[] = [];
  const open = (prefix = `${name.replace(' ', '-')}-${randomBytes(4).toString('hex')}`) => {
    const store = kind.store(prefix);
    stores.push(store);
    return store;
  };
  afterEach(() => { for (const store of stores.splice(0)) store.stop(); });

  it('gives back what was put, whole and in part, the latest of several', async () => {
    const store = open();
    const data = randomBytes(600_000);
    await store.put('chunks/ab/abcd', Buffer.from('first'));
    await store.put('chunks/ab/abcd', data);
    expect(await store.size('chunks/ab/abcd')).toBe(600_000);
    expect((await readWhole(store, 'chunks/ab/abcd', 600_000))?.equals(data)).toBe(true);
    expect(await all(await store.read('chunks/ab/abcd', { start: 599_990, end: 599_999 }))).toEqual(data.subarray(599_990));
    expect((await all(await store.read('chunks/ab/abcd', { start: 0, end: 99 })))?.equals(data.subarray(0, 100))).toBe(true);
    expect(await readWhole(store, 'chunks/ab/abcd', 599_999)).toBeNull();
  });

  it('knows nothing of what is not there or was removed', async () => {
    const store = open();
    await store.put('models/a.json', Buffer.from('{}'));
    await store.remove('models/a.json');
    await store.remove('models/a.json');
    expect([await store.size('models/a.json'), await store.read('models/a.json'), await keys(store, 'models')]).toEqual([null, null, []]);
  });

  it('lists what lies under a folder, beyond a page, and nothing beside it', async () => {
    const store = open();
    const some = Array.from({ length: 12 }, (_, at) => `chunks/0${at % 4}/c${at}`).sort();
    await Promise.all([...some, 'models/m.json', 'other/chunks/x'].map((key) => store.put(key, Buffer.from(key))));
    expect(await keys(store, 'chunks')).toEqual(some);
    for await (const { bytes, modifiedMs } of store.list('models')) expect([bytes, Math.abs(Date.now() - modifiedMs) < 3_600_000]).toEqual([13, true]);
  });

  it.each(['../evil', 'chunks/../../evil', '/etc/passwd', 'chunks', 'chunks/.hidden', 'chunks//x', 'a/b/c/d/e', ''])('refuses the key %p', async (key) => {
    const store = open();
    for (const use of [store.put(key, Buffer.from('x')), store.size(key), store.read(key), store.remove(key)]) await expect(use).rejects.toThrow(InvalidRequestError);
  });

  it('says which place cannot be used', async () => {
    const store = kind.broken();
    stores.push(store);
    await expect(store.put('chunks/ab/abcd', Buffer.from('x'))).rejects.toThrow(StoreFailedError);
    await expect(store.put('chunks/ab/abcd', Buffer.from('x'))).rejects.toThrow(store.place);
  });

  it('keeps blobs only under the hash that they have, and forgets one that was damaged since', async () => {
    const store = open();
    const blobs = new BlobStore(store);
    const data = randomBytes(700_000);
    const [hash, other] = [sha256(data), sha256(Buffer.from('other'))];
    await expect(blobs.put(other, data)).rejects.toThrow(/SHA-256 .* send it again/);
    await expect(blobs.put(hash, Buffer.alloc(0))).rejects.toThrow(InvalidRequestError);
    await expect(blobs.put(hash, Buffer.alloc(MOST_BLOB_BYTES + 1))).rejects.toThrow(InvalidRequestError);
    await expect(blobs.put('../../x', data)).rejects.toThrow(InvalidRequestError);
    await blobs.put(hash, data);
    expect(await blobs.sizes([other, hash])).toEqual([null, 700_000]);
    expect((await all(await blobs.read(hash)))?.equals(data)).toBe(true);
    const broken = Buffer.from(data);
    broken[5] = broken[5]! ^ 1;
    await kind.damage(store, blobKey(hash), broken);
    await expect(blobs.read(hash).then(all)).rejects.toThrow(/damaged and is removed.*model push/);
    expect(await blobs.sizes([hash])).toEqual([null]);
  });
});

it('leaves nothing half-written in a folder', async () => {
  const place = join(folder, 'atomic');
  const store = new FolderObjects(place);
  mkdirSync(join(place, 'chunks', 'ab', 'taken'), { recursive: true });
  await expect(store.put('chunks/ab/taken', Buffer.from('x'))).rejects.toThrow(StoreFailedError);
  expect(readdirSync(join(place, 'incoming'))).toEqual([]);
  await store.put('chunks/ab/free', Buffer.from('x'));
  expect(readFileSync(join(place, 'chunks', 'ab', 'free'), 'utf8')).toBe('x');
});

it('a bucket is not opened with a wrong key', async () => {
  process.env['AWS_ACCESS_KEY_ID'] = 'somebody';
  const store = new S3Objects({ bucket: 'fleet', prefix: 'p', endpoint: s3.endpoint, region: '' });
  await expect(store.put('chunks/ab/abcd', Buffer.from('x'))).rejects.toThrow(StoreFailedError);
  store.stop();
});

it('says how to have a store where there is none', () => {
  expect(() => new BlobStore(null).store).toThrow(NotAllowedNowError);
});
