import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelHolding } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { Holdings } from './holdings';
import { ModelsFolder } from './models-folder';
import { PeerExchange, type PeerExchangeOptions } from './peer-exchange';
import type { Peer, PeerSet } from './peer-set';
import { chunksOf, modelOf, sha256 } from './testing/blob-site';
import { TestFleetCa } from './testing/test-fleet-ca';

const log = createLogger('test', 'silent');
const model = modelOf(chunksOf(3, 10_000));
const { id } = model.manifest;
let root: string;
let ca: TestFleetCa;
const exchanges: PeerExchange[] = [];

beforeAll(async () => { ca = await TestFleetCa.create(); });
beforeEach(() => { root = mkdtempSync(join(tmpdir(), 'moefleet-exchange-')); });
afterEach(async () => {
  for (const exchange of exchanges.splice(0)) await exchange.stop();
  rmSync(root, { recursive: true, force: true });
});

interface Device { exchange: PeerExchange; holdings: Holdings; told: ModelHolding[]; address: () => string; }

async function device(name: string, over: Partial<PeerExchangeOptions> = {}): Promise<Device> {
  const folder = new ModelsFolder(join(root, name));
  const holdings = new Holdings(folder);
  const told: ModelHolding[] = [];
  const identity = await ca.device(name);
  const exchange: PeerExchange = new PeerExchange({
    deviceId: name, listen: { host: '127.0.0.1', port: 0 }, plainHost: null, identity: () => identity, holdings, log,
    send: (holding) => {
      told.push(holding);
      exchange.receive({ manifestSha256: id, peers: [] });
    },
    ...over,
  });
  exchanges.push(exchange);
  await exchange.online();
  return { exchange, holdings, told, address: () => `127.0.0.1:${told.at(-1)!.port}` };
}

/** With all of the model. */
async function holder(name: string, over: Partial<PeerExchangeOptions> = {}): Promise<Device> {
  const folder = new ModelsFolder(join(root, name));
  mkdirSync(folder.path, { recursive: true });
  writeFileSync(folder.modelPath(id), model.file);
  folder.keepManifest(id, model.serialised);
  const made = await device(name, over);
  made.holdings.whole(id);
  made.exchange.tell(id);
  return made;
}

const peerOf = (set: PeerSet): Peer => set.whole()[0]!;
const read = async (peer: Peer): Promise<string> => {
  const parts: Buffer[] = [];
  await peer.client.read({ sha256: sha256(model.chunks[1]!), offset: 0, bytes: 10_000 }, (part) => void parts.push(part), new AbortController().signal);
  return sha256(Buffer.concat(parts));
};

test('a device serves whom the coordinator has named, over the fleet\'s certificates, and nobody else', async () => {
  const a = await holder('a');
  const b = await device('b');
  const set = await b.exchange.begin(id);
  b.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'a', address: a.address(), whole: true }] });
  await expect(read(peerOf(set))).rejects.toMatchObject({ status: 403, retryAfterMs: 1000 });
  a.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'b', address: b.address(), whole: false }] });
  expect(await read(peerOf(set))).toBe(sha256(model.chunks[1]!));
  expect(a.exchange.bytesSent).toBe(10_000);
  a.exchange.receive({ manifestSha256: id, peers: [] });
  await expect(read(peerOf(set))).rejects.toMatchObject({ status: 403 });
});

test('who has a certificate of the fleet is still only who it says: another at the address is not believed, a stranger not let in', async () => {
  const a = await holder('a');
  const b = await device('b');
  const set = await b.exchange.begin(id);
  b.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'c', address: a.address(), whole: true }] });
  a.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'b', address: b.address(), whole: false }] });
  await expect(read(peerOf(set))).rejects.toThrow(`at ${a.address()} is a, c was expected`);
  const other = await (await TestFleetCa.create()).device('b');
  const stranger = await device('stranger', { identity: () => other });
  const theirs = await stranger.exchange.begin(id);
  stranger.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'a', address: a.address(), whole: true }] });
  await expect(read(peerOf(theirs))).rejects.toThrow(/certificate|issuer|ECONNRESET/);
  expect(a.exchange.bytesSent).toBe(0);
});

test('what is held is told as it changes, with the networks that it is served on, and taken back', async () => {
  const a = await holder('a');
  expect(a.told.at(-1)).toMatchObject({ manifestSha256: id, whole: true, networks: ['127.0.0.1/8'] });
  expect(a.told.at(-1)!.port).toBeGreaterThan(0);
  a.holdings.forget(id);
  a.exchange.tell(id);
  expect(a.told.at(-1)).toMatchObject({ port: 0, whole: false });
});

test.each<[string, Partial<PeerExchangeOptions>]>([
  ['without certificates and without an address', { identity: () => null, listen: null }],
  ['with a certificate that is not for serving', { identity: () => 'cannot serve' }],
])('%s nothing is served, and nothing told', async (_, over) => {
  const a = await holder('a', over);
  expect(a.told).toEqual([]);
  expect(await a.exchange.begin(id).then((set) => set.anyReady())).toBe(false);
});

test('without certificates it serves where it was told to', async () => {
  const a = await holder('a', { identity: () => null });
  const b = await device('b', { identity: () => null, listen: null, plainHost: '127.0.0.1' });
  const set = await b.exchange.begin(id);
  b.exchange.receive({ manifestSha256: id, peers: [{ deviceId: 'a', address: a.address(), whole: true }] });
  expect(await read(peerOf(set))).toBe(sha256(model.chunks[1]!));
});
