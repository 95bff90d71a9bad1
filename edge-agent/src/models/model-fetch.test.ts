import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import { CoordinatorBlobs } from './coordinator-blobs';
import { FetchAllowance, type FetchLimits } from './fetch-allowance';
import { FetchProgress } from './fetch-progress';
import { Holdings } from './holdings';
import { fetchModel, type ModelFetchOptions } from './model-fetch';
import { ModelsFolder } from './models-folder';
import { PeerListener } from './peer-listener';
import { PeerSet } from './peer-set';
import { BlobSite, chunksOf, modelOf, sha256, type TestModel } from './testing/blob-site';
import { BlobClient } from './blob-client';

const log = createLogger('test', 'silent');
const CHUNK = 200_000;
let root: string;
let site: BlobSite;
const stops: (() => Promise<void>)[] = [];

beforeEach(() => { root = mkdtempSync(join(tmpdir(), 'moefleet-models-')); });
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
  rmSync(root, { recursive: true, force: true });
});

async function serve(...models: TestModel[]): Promise<void> {
  site = await BlobSite.start(...models);
  stops.push(() => site.stop());
}

interface Device { folder: ModelsFolder; peers: PeerSet; holdings: Holdings; progress: FetchProgress; fetch: (signal?: AbortSignal, over?: Partial<ModelFetchOptions>) => Promise<void>; }

function device(id: string, { manifest }: TestModel, limits: FetchLimits = { bytesPerSecond: null, quietHours: null }, clock = () => new Date()): Device {
  const folder = new ModelsFolder(join(root, id));
  const holdings = new Holdings(folder);
  const client = site.client(5_000);
  const now = () => performance.now();
  const coordinator = new CoordinatorBlobs({ client: () => client, allowance: new FetchAllowance(limits, now, clock), log, backoff: { baseMs: 5, maxMs: 20 } });
  const peers = new PeerSet({ selfId: id, now, random: Math.random, log, connect: (_, address) => new BlobClient({ host: '127.0.0.1', port: Number(address), tls: null }, 300) });
  stops.push(async () => {
    client.close();
    peers.close();
  });
  const made: Device = {
    folder, peers, holdings, progress: new FetchProgress(manifest.id, manifest.bytes, now),
    fetch: (signal = new AbortController().signal, over = {}) => {
      made.progress = new FetchProgress(manifest.id, manifest.bytes, now);
      return fetchModel({ manifestSha256: manifest.id, bytes: manifest.bytes }, { folder, coordinator, peers, setUpPath: null, check: async () => {}, onPart: (part) => holdings.begin(part), log, ...over }, made.progress, signal);
    },
  };
  return made;
}

const rangeOf = ({ headers }: IncomingMessage): [number, number] => /(\d+)-(\d+)/.exec(headers.range!)!.slice(1).map(Number) as [number, number];
const fetched = (one: Device, { manifest, file }: TestModel): boolean => readFileSync(one.folder.modelPath(manifest.id)).equals(file);

test('a model comes whole, by its name, and what is in it twice comes once', async () => {
  const [a, b] = chunksOf(2, CHUNK) as [Buffer, Buffer];
  const model = modelOf([a, b, a, Buffer.from('the end')]);
  await serve(model);
  const one = device('one', model);
  const checked: string[] = [];
  await one.fetch(undefined, { check: async (path) => void checked.push(path) });
  expect(fetched(one, model)).toBe(true);
  expect(checked).toEqual([one.folder.partPath(model.manifest.id)]);
  expect(site.bytesSent).toBe(model.file.length - CHUNK + model.serialised.length);
});

test('what was verified before a restart is kept, what is damaged of it comes again', async () => {
  const model = modelOf(chunksOf(12, CHUNK));
  await serve(model);
  const one = device('one', model);
  const cut = new AbortController();
  site.fault = () => {
    if (site.bytesSent > 6 * CHUNK) cut.abort(new Error('power cut'));
    return false;
  };
  await expect(one.fetch(cut.signal)).rejects.toThrow('power cut');
  site.fault = () => false;
  const file = await open(one.folder.partPath(model.manifest.id), 'r+');
  await file.write(Buffer.from('damage'), 0, 6, 2 * CHUNK + 500);
  await file.close();
  site.bytesSent = 0;
  await one.fetch();
  expect(fetched(one, model)).toBe(true);
  expect(site.bytesSent).toBeLessThanOrEqual(8 * CHUNK);
  expect(one.progress.sources.coordinator).toBe(site.bytesSent);
});

test('ranges that break off go on where they stopped, and a coordinator that asks for patience gets it', async () => {
  const model = modelOf(chunksOf(4, 4 * CHUNK));
  await serve(model);
  const one = device('one', model);
  let faults = 0;
  site.fault = (sha, response, request) => {
    faults += 1;
    if (faults % 5 === 1) return response.writeHead(503, { 'retry-after': '0' }).end() !== undefined;
    if (faults % 5 !== 3 || sha === model.manifest.id) return false;
    const [first, last] = rangeOf(request);
    const data = model.chunks.find((chunk) => sha256(chunk) === sha)!;
    response.writeHead(206, { 'content-length': last - first + 1, 'content-range': `bytes ${first}-${last}/${data.length}` });
    const some = data.subarray(first, Math.min(first + 10_000, last));
    response.write(some, () => setTimeout(() => response.destroy(), 20));
    site.bytesSent += some.length;
    return true;
  };
  await one.fetch();
  expect(fetched(one, model)).toBe(true);
  expect(site.bytesSent).toBe(model.file.length + model.serialised.length);
});

test('no more than one of the largest chunks is ever under way, whatever their sizes', async () => {
  const model = modelOf([...chunksOf(30, 20_000), ...chunksOf(3, 160_000), ...chunksOf(30, 40_000)]);
  await serve(model);
  const one = device('one', model);
  const held = new Set<string>();
  let most = 0;
  site.fault = (sha) => {
    if (sha === model.manifest.id) return false;
    held.add(sha);
    const onDisk = one.holdings;
    const underWay = [...held].filter((each) => onDisk.find(each).t !== 'here').reduce((sum, each) => sum + model.chunks.find((chunk) => sha256(chunk) === each)!.length, 0);
    most = Math.max(most, underWay);
    return false;
  };
  await one.fetch();
  expect(most).toBeLessThanOrEqual(160_000);
  expect(most).toBeGreaterThan(60_000);
});

test('wrong bytes from the coordinator count for nothing, and for ever wrong ones end it with the chunk named', async () => {
  const model = modelOf(chunksOf(3, 50_000));
  await serve(model);
  const one = device('one', model);
  // A range each.
  let lies = 4;
  const bad = sha256(model.chunks[1]!);
  site.fault = (sha, response, request) => {
    if (sha !== bad || lies === 0) return false;
    lies -= 1;
    const [first, last] = rangeOf(request);
    response.writeHead(206, { 'content-range': `bytes ${first}-${last}/50000`, 'content-length': last - first + 1 }).end(Buffer.alloc(last - first + 1, 1));
    return true;
  };
  await one.fetch();
  expect(fetched(one, model)).toBe(true);
  lies = Infinity;
  await expect(device('two', model).fetch()).rejects.toThrow(new RegExp(`wrong bytes.*${bad.slice(0, 12)}`));
});

test('a manifest that is not the one asked for, and a chunk that is kept no longer, are errors', async () => {
  const model = modelOf(chunksOf(2, 1000));
  await serve(model);
  site.fault = (sha, response) => sha === model.manifest.id && (response.writeHead(206, { 'content-range': 'bytes 0-3/4', 'content-length': 4 }).end('lies'), true);
  await expect(device('one', model).fetch()).rejects.toThrow(/manifest .*SHA-256 .* arrived/);
  site.fault = (sha, response) => sha !== model.manifest.id && (response.writeHead(404).end(), true);
  await expect(device('two', model).fetch()).rejects.toThrow(/does not keep .* any more; push the model again/);
});

test('a disk without room is an error before the first byte, with both figures', async () => {
  const model = modelOf(chunksOf(1, 1000));
  await serve(model);
  const { folder } = device('one', model);
  await folder.prepare();
  await expect(folder.checkRoom(model.manifest.id, 2 ** 50)).rejects.toThrow(/1024.0 TiB are needed and .* free .* kept free/);
  expect(site.asked).toEqual([]);
});

test('a part that nothing was written to for long goes, and parts of others than the one that is wanted', async () => {
  const folder = new ModelsFolder(join(root, 'one'));
  await folder.prepare();
  const [wanted, other] = ['ab'.repeat(32), 'cd'.repeat(32)] as const;
  for (const id of [wanted, other]) writeFileSync(folder.partPath(id), 'half');
  expect(folder.dropParts(wanted)).toEqual([other]);
  expect(folder.dropOldParts(Date.now() - 10_000)).toEqual([]);
  expect(folder.dropOldParts(Date.now() + 10_000)).toEqual([wanted]);
  expect(readdirSync(folder.path)).toEqual([]);
});

test('a new version moves only what differs, and the very file that the device was set up with nothing', async () => {
  const first = modelOf(chunksOf(10, CHUNK));
  const second = modelOf([Buffer.from('moves all that follows'), ...first.chunks.slice(0, 7), ...chunksOf(2, CHUNK)]);
  await serve(first, second);
  await device('one', first).fetch();
  site.bytesSent = 0;
  const one = device('one', second);
  await one.fetch();
  expect(fetched(one, second)).toBe(true);
  expect(site.bytesSent).toBe(second.serialised.length + 22 + 2 * CHUNK);
  expect(one.progress.sources.disk).toBe(7 * CHUNK);
  site.bytesSent = 0;
  const setUpPath = join(root, 'own.gguf');
  writeFileSync(setUpPath, first.file);
  await device('two', first).fetch(undefined, { setUpPath });
  expect(site.bytesSent).toBe(first.serialised.length);
});

test('a kept model that the disk has damaged is not copied from', async () => {
  const model = modelOf(chunksOf(3, CHUNK));
  const next = modelOf([...model.chunks, Buffer.from('more')]);
  await serve(model, next);
  const one = device('one', model);
  await one.fetch();
  const file = await open(one.folder.modelPath(model.manifest.id), 'r+');
  await file.write(Buffer.from('damage'), 0, 6, CHUNK + 9);
  await file.close();
  const again = device('one', next);
  await again.fetch();
  expect(fetched(again, next)).toBe(true);
  expect(again.progress.sources).toMatchObject({ disk: 2 * CHUNK, coordinator: CHUNK + 4 });
});

test('quiet hours hold everything up and say so; they end when they are over', async () => {
  const model = modelOf(chunksOf(2, 1000));
  await serve(model);
  let hour = 23;
  const one = device('one', model, { bytesPerSecond: null, quietHours: { from: 22 * 60, to: 6 * 60 } }, () => new Date(2026, 0, 1, hour, 59, 59, hour === 23 ? 0 : 999));
  const cut = new AbortController();
  const running = one.fetch(cut.signal);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(one.progress.waiting).toBe('quiet hours, 22:00-06:00');
  expect(site.asked).toEqual([]);
  cut.abort(new Error('enough'));
  await expect(running).rejects.toThrow('enough');
  hour = 6;
  await one.fetch();
});

test('of a site of four the coordinator sends each chunk hardly more than once, and one that lies is asked no more', async () => {
  const model = modelOf(chunksOf(32, 30_000));
  await serve(model);
  const devices = await Promise.all(['a', 'b', 'c', 'd'].map(async (id) => {
    const one = device(id, model);
    const listener = new PeerListener({ listen: { host: '127.0.0.1', port: 0 }, holdings: one.holdings, isNamed: () => true, log });
    await listener.open(null);
    stops.push(() => listener.close());
    return { ...one, self: one, id, listener };
  }));
  const liar = await BlobSite.start();
  liar.fault = (_, response) => (response.writeHead(206, { 'content-range': 'bytes 0-29999/30000', 'content-length': 30_000 }).end(Buffer.alloc(30_000)), true);
  stops.push(() => liar.stop());
  const named = [...devices.map(({ id, listener }) => ({ deviceId: id, address: String(listener.port), whole: false })), { deviceId: 'liar', address: String(liar.port), whole: true }];
  await Promise.all(devices.map(async ({ id, peers, fetch, holdings, self }) => {
    peers.update(named.filter(({ deviceId }) => deviceId !== id));
    await fetch();
    holdings.whole(model.manifest.id);
    expect(fetched(self, model)).toBe(true);
  }));
  const manifests = devices.length * model.serialised.length;
  expect(site.bytesSent - manifests).toBeLessThanOrEqual(1.5 * model.file.length);
  expect(liar.asked.filter((sha) => sha !== model.manifest.id).length).toBeLessThanOrEqual(2 * devices.length);
  // A latecomer moves nothing over the site's link where somebody has all of it.
  site.bytesSent = 0;
  const late = device('late', model);
  late.peers.update([{ ...named[2]!, whole: true }]);
  await late.fetch();
  expect(fetched(late, model)).toBe(true);
  expect(site.bytesSent).toBe(0);
});

test('devices that are gone, or never come to have what is theirs, cost time and no more', async () => {
  const model = modelOf(chunksOf(12, 30_000));
  await serve(model);
  const one = device('one', model);
  const stuck = await BlobSite.start();
  stuck.fault = (_, response) => (response.writeHead(503, { 'retry-after': '0', 'x-moefleet-held': '7' }).end(), true);
  stops.push(() => stuck.stop());
  const silent = await BlobSite.start();
  silent.fault = () => true;
  stops.push(() => silent.stop());
  const impatient = new PeerSet({ selfId: 'one', now: () => performance.now(), random: Math.random, log, stallMs: 500, connect: (_, address) => new BlobClient({ host: '127.0.0.1', port: Number(address), tls: null }, 100) });
  stops.push(async () => impatient.close());
  impatient.update([{ deviceId: 'stuck', address: String(stuck.port), whole: false }, { deviceId: 'silent', address: String(silent.port), whole: true }, { deviceId: 'gone', address: '1', whole: false }]);
  await one.fetch(undefined, { peers: impatient });
  expect(fetched(one, model)).toBe(true);
  expect(stuck.asked.length).toBeGreaterThan(0);
});
