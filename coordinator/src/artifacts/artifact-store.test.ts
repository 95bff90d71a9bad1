import { createHash, randomBytes } from 'node:crypto';
import { appendFileSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { InvalidRequestError, NameTakenError, NotAllowedNowError, NotFoundError, StoreFailedError } from '../errors';
import { ArtifactStore, type NewArtifact } from './artifact-store';

let folder: string;
let store: ArtifactStore;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-artifacts-'));
  store = new ArtifactStore(folder, () => 1_700_000_000_000);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const content = randomBytes(600_000);
const announce = (change: Partial<NewArtifact> = {}, data = content): NewArtifact => ({ name: 'a-1.0.0.tar.zst', bytes: data.length, sha256: createHash('sha256').update(data).digest('hex'), signature: 'signed', ...change });
async function* parts(data: Buffer, size = 100_000): AsyncGenerator<Buffer> {
  for (let at = 0; at < data.length; at += size) yield data.subarray(at, at + size);
}
async function all(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const read: Buffer[] = [];
  for await (const part of stream) read.push(part);
  return Buffer.concat(read);
}

describe('the artifact store', () => {
  it('gives back what was put, by name and from any offset', async () => {
    const put = await store.put(announce(), parts(content));
    expect(put).toEqual({ ...announce(), addedMs: 1_700_000_000_000 });
    expect(await store.find('a-1.0.0.tar.zst')).toEqual(put);
    expect(await store.list()).toEqual([put]);
    expect((await all(await store.read(put.sha256, 0))).equals(content)).toBe(true);
    expect((await all(await store.read(put.sha256, 599_990))).equals(content.subarray(599_990))).toBe(true);
    expect(await all(await store.read(put.sha256, 600_000))).toHaveLength(0);
  });

  it('takes the same again, and refuses other content under a name that is taken', async () => {
    await store.put(announce(), parts(content));
    await store.put(announce({ signature: 'signed again' }), parts(content));
    expect((await store.find('a-1.0.0.tar.zst')).signature).toBe('signed again');
    const other = randomBytes(10);
    await expect(store.put(announce({}, other), parts(other))).rejects.toThrow(NameTakenError);
  });

  it.each<[string, Partial<NewArtifact>, Buffer]>([
    ['that is shorter than announced', {}, content.subarray(1)],
    ['that is longer than announced', {}, Buffer.concat([content, Buffer.from('x')])],
    ['with another SHA-256', { sha256: '0'.repeat(64) }, content],
    ['with a name that leaves the folder', { name: '../evil' }, content],
    ['with a name that is hidden', { name: '.evil' }, content],
    ['with no bytes', { bytes: 0 }, content],
    ['with a hash that is none', { sha256: '../../x' }, content],
  ])('keeps nothing of a file %s', async (_, change, data) => {
    await expect(store.put(announce(change), parts(data))).rejects.toThrow(InvalidRequestError);
    expect(readdirSync(folder, { recursive: true }).filter((path) => !['blobs', 'names', 'incoming'].includes(String(path)))).toEqual([]);
  });

  it('knows nothing of names and contents that are not there, damaged records among them', async () => {
    await store.put(announce(), parts(content));
    await expect(store.find('b')).rejects.toThrow(NotFoundError);
    await expect(store.find('../names/a-1.0.0.tar.zst')).rejects.toThrow(NotFoundError);
    await expect(store.read('0'.repeat(64), 0)).rejects.toThrow(NotFoundError);
    await expect(store.read('../../etc/passwd', 0)).rejects.toThrow(InvalidRequestError);
    await expect(store.read(announce().sha256, 600_001)).rejects.toThrow('within the 600000 bytes');
    appendFileSync(join(folder, 'names', 'a-1.0.0.tar.zst.json'), 'damage');
    await expect(store.find('a-1.0.0.tar.zst')).rejects.toThrow(NotFoundError);
    writeFileSync(join(folder, 'names', 'c.json'), JSON.stringify({ ...announce({ name: 'c' }), sha256: '../../../etc/passwd' }));
    await expect(store.find('c')).rejects.toThrow(NotFoundError);
    expect(await store.list()).toEqual([]);
  });

  it('names the folder and the way out where it cannot be written', async () => {
    writeFileSync(join(folder, 'file'), '');
    await expect(new ArtifactStore(join(folder, 'file'), Date.now).put(announce(), parts(content))).rejects.toThrow(StoreFailedError);
    expect(new StoreFailedError('/fleet/artifacts', Object.assign(new Error('read-only file system'), { code: 'EROFS' })).message).toMatch(/\/fleet\/artifacts, .*--artifact-dir FOLDER/);
  });

  it('says how to have one where there is none', async () => {
    const none = new ArtifactStore(null, Date.now);
    await expect(none.find('a')).rejects.toThrow(NotAllowedNowError);
    await expect(none.put(announce(), parts(content))).rejects.toThrow('--artifact-dir');
    expect(await none.list()).toEqual([]);
  });
});
