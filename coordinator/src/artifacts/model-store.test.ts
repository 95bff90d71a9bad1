import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, truncateSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { type FindMissingBlobsResponse, type ListModelsResponse, ModelManifest, ModelStoreServiceClient, type PutBlobsResponse, type PutModelResponse, type RemoveModelResponse } from '@moefleet/proto';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { change, startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';
import { blobKey } from './blob-store';

interface Answers { findMissingBlobs: FindMissingBlobsResponse; putModel: PutModelResponse; listModels: ListModelsResponse; removeModel: RemoveModelResponse }

let redis: TestRedis;
let folder: string;
let coordinator: TestCoordinator;
let client: ModelStoreServiceClient;
beforeAll(async () => {
  redis = await startRedis();
  folder = mkdtempSync(join(tmpdir(), 'moefleet-models-'));
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_ARTIFACT_DIR: folder } });
  const { credentials, options } = testChannel(null);
  client = new ModelStoreServiceClient(coordinator.addresses().operatorAddress, credentials, options);
});
afterAll(async () => {
  client.close();
  await coordinator.close();
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});

function ask<M extends keyof Answers>(method: M, request: object): Promise<Answers[M]> {
  const call = client[method].bind(client) as unknown as (request: object, done: (error: unknown, response: Answers[M]) => void) => void;
  return new Promise((resolve, reject) => call(request, (error, response) => (error ? reject(error) : resolve(response))));
}

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest();
const hex = (data: Buffer) => sha256(data).toString('hex');

function put(...blobs: (Buffer | { sha256: Buffer; data: Buffer })[]): Promise<PutBlobsResponse> {
  return new Promise((resolve, reject) => {
    const call = client.putBlobs((error, answer) => (error ? reject(error) : resolve(answer)));
    for (const blob of blobs) call.write(Buffer.isBuffer(blob) ? { sha256: sha256(blob), data: blob } : blob);
    call.end();
  });
}

function manifestOf(chunks: Buffer[], changed: Partial<ModelManifest> = {}): Buffer {
  const whole = Buffer.concat(chunks);
  return Buffer.from(ModelManifest.encode({ bytes: BigInt(whole.length), sha256: sha256(whole), modelHash: 'ab'.repeat(32), chunks: chunks.map((chunk) => ({ bytes: chunk.length, sha256: sha256(chunk) })), ...changed }).finish());
}

async function push(name: string, chunks: Buffer[]): Promise<PutModelResponse> {
  const manifest = manifestOf(chunks);
  await put(...chunks, manifest);
  return ask('putModel', { name, manifestSha256: hex(manifest) });
}

const [shared, first, second] = [randomBytes(200_000), randomBytes(150_000), randomBytes(100_000)];

test('a model is there when all of its chunks are; of another version only what differs is kept anew and goes with it', async () => {
  const manifest = manifestOf([shared, first, shared]);
  expect(await put(shared)).toEqual({ blobs: 1, bytes: 200_000n });
  expect((await ask('findMissingBlobs', { sha256: [sha256(first), sha256(shared)] })).sha256).toEqual([sha256(first)]);
  await put(manifest);
  await expect(ask('putModel', { name: 'v1', manifestSha256: hex(manifest) })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringContaining(`1 of 2 chunks of v1 are not here (${hex(first).slice(0, 12)}); push it again`) });
  expect((await push('v1', [shared, first, shared])).model).toMatchObject({ name: 'v1', manifestSha256: hex(manifest), bytes: 550_000n, chunks: 3, ownBytes: 350_000n });
  expect((await push('v2', [second, shared])).model).toMatchObject({ bytes: 300_000n, ownBytes: 100_000n });
  expect((await push('v1', [shared, first, shared])).model).toMatchObject({ ownBytes: 350_000n });
  expect((await ask('listModels', {})).models.map(({ name }) => name)).toEqual(['v1', 'v2']);
  await expect(push('v1', [second])).rejects.toMatchObject({ code: status.ALREADY_EXISTS });
  expect((await ask('removeModel', { name: 'v1' })).freedBytes).toBe(150_000n + BigInt(manifest.length));
  expect((await ask('findMissingBlobs', { sha256: [sha256(first), sha256(shared), sha256(second)] })).sha256).toEqual([sha256(first)]);
  await expect(ask('removeModel', { name: 'v1' })).rejects.toMatchObject({ code: status.NOT_FOUND, details: expect.stringContaining('moefleet model list') });
  await ask('removeModel', { name: 'v2' });
});

test('of a stream that goes wrong, what came before is kept', async () => {
  const [good, bad] = [randomBytes(1000), randomBytes(1000)];
  await expect(put(good, { sha256: sha256(good), data: bad }, bad)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringContaining('send it again') });
  await expect(put({ sha256: Buffer.from('../../x'), data: bad })).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
  expect((await ask('findMissingBlobs', { sha256: [sha256(good)] })).sha256).toEqual([]);
});

test.each<[string, Partial<ModelManifest>, RegExp]>([
  ['whose sum is another', { bytes: 7n }, /manifest\.bytes: 7 is not the sum of its chunks, 100000/],
  ['without chunks', { chunks: [] }, /manifest\.chunks/],
  ['with a chunk that is too large', { chunks: [{ bytes: 3_000_000, sha256: sha256(second) }] }, /chunks\[0\]\.bytes: 3000000/],
  ['with a hash that is none', { chunks: [{ bytes: 100_000, sha256: Buffer.from('x') }] }, /chunks\[0\]\.sha256/],
  ['with a chunk of another size', { bytes: 99_999n, chunks: [{ bytes: 99_999, sha256: sha256(second) }] }, /1 of 1 chunks .* are not here/],
  ['of a model without a hash', { modelHash: 'x' }, /model_hash/],
])('a list of chunks %s is refused', async (_, changed, why) => {
  const manifest = manifestOf([second], changed);
  await put(second, manifest);
  await expect(ask('putModel', { name: 'bad', manifestSha256: hex(manifest) })).rejects.toMatchObject({ details: expect.stringMatching(why) });
});

test('what is no list of chunks, no name and no hash is refused by name', async () => {
  const noise = Buffer.from('no manifest at all');
  await put(noise);
  await expect(ask('putModel', { name: 'm', manifestSha256: hex(noise) })).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringContaining('manifest') });
  await expect(ask('putModel', { name: '../x', manifestSha256: hex(noise) })).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringContaining('name: "../x"') });
  await expect(ask('putModel', { name: 'm', manifestSha256: '../x' })).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
  await expect(ask('findMissingBlobs', { sha256: Array.from({ length: 10_001 }, () => sha256(noise)) })).rejects.toMatchObject({ details: expect.stringContaining('at most 10000') });
});

test('a model that was damaged on the disk is whole again after another push', async () => {
  await push('m', [first]);
  truncateSync(join(folder, blobKey(hex(first))), 5);
  const manifest = manifestOf([first]);
  await expect(ask('putModel', { name: 'm', manifestSha256: hex(manifest) })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION });
  await push('m', [first]);
  await ask('removeModel', { name: 'm' });
});

test('a model in use stays: set for the fleet, asked of a device; chunks of a push that was given up go with the next removal', async () => {
  await coordinator.join({ id: 'a' });
  await push('used', [first]);
  const orphan = randomBytes(5000);
  const orphanPath = join(folder, blobKey(hex(orphan)));
  await put(orphan);
  await change(coordinator.operator, { change: { $case: 'setModel', value: { name: 'used', bytesPerSecond: undefined, quietHours: '' } } });
  await expect(ask('removeModel', { name: 'used' })).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringMatching(/in use: it is set for the fleet.*moefleet model auto/) });
  await change(coordinator.operator, { change: { $case: 'clearModel', value: {} } });
  await push('other', [second]);
  await ask('removeModel', { name: 'other' });
  expect((await ask('findMissingBlobs', { sha256: [sha256(orphan)] })).sha256).toEqual([]);
  utimesSync(orphanPath, 1, 1);
  await ask('removeModel', { name: 'used' });
  expect((await ask('findMissingBlobs', { sha256: [sha256(orphan)] })).sha256).toHaveLength(1);
  expect(readdirSync(join(folder, 'incoming'))).toEqual([]);
});

test('pushes and removals at the same time, over two coordinators, leave no model without its chunks', async () => {
  const other = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b', env: { MOEFLEET_ARTIFACT_DIR: folder } });
  const { credentials, options } = testChannel(null);
  const there = new ModelStoreServiceClient(other.addresses().operatorAddress, credentials, options);
  const removing = (name: string) => new Promise((resolve) => there.removeModel({ name }, resolve));
  await push('old', [shared, first]);
  const [entered] = await Promise.all([push('new', [shared, second]).catch((error: { code: status }) => error.code), removing('old')]);
  // Either it was entered whole, or it was told that something has gone meanwhile.
  if (typeof entered === 'number') expect(entered).toBe(status.FAILED_PRECONDITION);
  else expect((await ask('findMissingBlobs', { sha256: [shared, second].map(sha256) })).sha256).toEqual([]);
  there.close();
  await other.close();
});
