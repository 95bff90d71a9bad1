import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request as plainRequest, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { request as tlsRequest, type RequestOptions } from 'node:https';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials as grpcCredentials } from '@grpc/grpc-js';
import { ArtifactServiceClient } from '@moefleet/proto';
import { COORDINATOR_NAME, createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { blobKey, BlobStore } from '../artifacts/blob-store';
import { FolderObjects } from '../artifacts/folder-objects';
import type { FetchAdmission } from '../identity/fetch-admission';
import { FleetCa } from '../identity/fleet-ca';
import { initFleet } from '../identity/init-fleet';
import { Metrics } from '../metrics';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';
import { EnrolmentCalls, testDevice } from '../testing/test-device';
import { BlobServer } from './blob-server';

interface Answer { code: number; headers: IncomingHttpHeaders; body: Buffer }

let redis: TestRedis;
let folder: string;
let blobs: BlobStore;
const data = randomBytes(1_500_000);
const sha256 = createHash('sha256').update(data).digest('hex');

beforeAll(async () => {
  redis = await startRedis();
  folder = mkdtempSync(join(tmpdir(), 'moefleet-blobs-'));
  await initFleet(join(folder, 'fleet'), 'fleet', [], Date.now());
  blobs = new BlobStore(new FolderObjects(join(folder, 'store')));
});
beforeEach(() => blobs.put(sha256, data));
afterAll(async () => {
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});

function ask(port: number, { path = `/blobs/${sha256}`, tls, ...options }: RequestOptions & { tls?: RequestOptions } = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const take = (response: IncomingMessage) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part)).on('error', reject);
      response.on('end', () => resolve({ code: response.statusCode!, headers: response.headers, body: Buffer.concat(parts) }));
    };
    const to = { host: '127.0.0.1', port, path, agent: false as const, ...options, ...tls };
    (tls ? tlsRequest(to, take) : plainRequest(to, take)).on('error', reject).end();
  });
}

async function counted(coordinator: TestCoordinator, name: string): Promise<number> {
  const text = await (await fetch(`${coordinator.http}/metrics`)).text();
  return Number(new RegExp(`^moefleet_coordinator_${name} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
}

describe('without TLS', () => {
  let coordinator: TestCoordinator;
  let port: number;
  beforeAll(async () => {
    coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_ARTIFACT_DIR: join(folder, 'store') } });
    const agent = await TestAgent.join(coordinator.gateway, { id: 'a' });
    port = agent.welcome!.blobPort!;
    agent.kill();
  });
  afterAll(() => coordinator.close());

  it('serves a blob whole, in part and as a head, and counts what it has sent', async () => {
    const before = await counted(coordinator, 'blob_bytes_total');
    const whole = await ask(port);
    expect([whole.code, whole.body.equals(data), whole.headers.etag, whole.headers['content-type']]).toEqual([200, true, `"${sha256}"`, 'application/octet-stream']);
    const part = await ask(port, { headers: { range: 'bytes=1000000-1000009' } });
    expect([part.code, part.body.equals(data.subarray(1_000_000, 1_000_010)), part.headers['content-range']]).toEqual([206, true, 'bytes 1000000-1000009/1500000']);
    const head = await ask(port, { method: 'HEAD' });
    expect([head.code, head.body.length, head.headers['content-length']]).toEqual([200, 0, '1500000']);
    expect(await counted(coordinator, 'blob_bytes_total')).toBe(before + 1_500_010);
  });

  it.each<[string, RequestOptions, number, IncomingHttpHeaders]>([
    ['a range beyond it', { headers: { range: 'bytes=1500000-' } }, 416, { 'content-range': 'bytes */1500000' }],
    ['what the reader has already', { headers: { 'if-none-match': `"${sha256}"` } }, 304, {}],
    ['a range of what has another ETag', { headers: { range: 'bytes=0-9', 'if-range': '"other"' } }, 200, { 'content-length': '1500000' }],
    ['a hash that nobody has', { path: `/blobs/${'0'.repeat(64)}` }, 404, {}],
    ['a path that leaves the folder', { path: '/blobs/../models/a.json' }, 404, {}],
    ['a path that is none', { path: '/%00' }, 404, {}],
    ['another method', { method: 'PUT' }, 405, { allow: 'GET, HEAD' }],
  ])('answers %s', async (_, options, code, headers) => {
    expect(await ask(port, options)).toMatchObject({ code, headers });
  });

  it('breaks off, and has no more, what was damaged on its disk', async () => {
    writeFileSync(join(folder, 'store', blobKey(sha256)), Buffer.concat([data.subarray(1), Buffer.from('x')]));
    await expect(ask(port)).rejects.toThrow();
    expect((await ask(port)).code).toBe(404);
  });

  it('tells agents of no port where it keeps nothing', async () => {
    const none = await startCoordinator(redis.url);
    const agent = await TestAgent.join(none.gateway, { id: 'a' });
    expect(agent.welcome!.blobPort).toBeUndefined();
    agent.kill();
    await none.close();
  });
});

test('turns away readers beyond its most, cuts one that does not read, and has room again afterwards', async () => {
  const server = new BlobServer({ address: { host: '127.0.0.1', port: 0 }, certificate: null, mostReaders: 2, standstillMs: 400, now: Date.now, random: () => 0.5 },
    { blobs, admission: {} as FetchAdmission, metrics: new Metrics(), log: createLogger('test', 'silent') });
  await server.start();
  // Far more than what the sockets hold between them.
  const large = randomBytes(15_000_000);
  const hash = createHash('sha256').update(large).digest('hex');
  await blobs.put(hash, large);
  const mute = await Promise.all([1, 2].map(() => new Promise<ReturnType<typeof connect>>((resolve) => {
    const socket = connect(server.port!, '127.0.0.1', () => {
      socket.write(`GET /blobs/${hash} HTTP/1.1\r\nhost: x\r\n\r\n`);
      socket.once('readable', () => resolve(socket));
    });
  })));
  const { code, headers } = await ask(server.port!);
  expect([code, Number(headers['retry-after']) >= 1]).toEqual([503, true]);
  await until('the mute are cut', async () => (await ask(server.port!)).code === 200, 10_000, 50);
  for (const socket of mute) socket.destroy();
  await server.stop();
});

describe('with TLS', () => {
  let coordinator: TestCoordinator;
  let port: number;
  const fleet = () => join(folder, 'fleet');
  const ca = () => readFileSync(join(fleet(), 'ca.pem'));
  beforeAll(async () => {
    coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_TLS_DIR: fleet(), MOEFLEET_ARTIFACT_DIR: join(folder, 'store') } });
    port = Number(coordinator.addresses().blobAddress!.split(':')[1]);
  });
  afterAll(() => coordinator.close());

  async function enrolled(id: string): Promise<{ key: string; cert: string }> {
    const { credentials, options } = testChannel(fleet());
    const { IdentityServiceClient } = await import('@moefleet/proto');
    const operators = new IdentityServiceClient(coordinator.addresses().operatorAddress, credentials, options);
    const { secret } = await new Promise<{ secret: string }>((resolve, reject) => operators.createEnrolmentToken({ labels: {}, uses: 1, ttlMs: 60_000n, why: '' },
      (error, answer) => (error ? reject(error) : resolve(answer as never))));
    const device = await testDevice(id);
    const calls = new EnrolmentCalls(coordinator.gateway, fleet());
    const { chainPem } = await calls.enrol(secret, device);
    calls.close();
    operators.close();
    return { key: device.keyPem, cert: chainPem };
  }
  const as = (device: object) => ({ tls: { ca: ca(), servername: COORDINATOR_NAME, ...device } });

  it('serves devices of the fleet, under the name that coordinators alone have', async () => {
    const { code, body } = await ask(port, as(await enrolled('a')));
    expect([code, body.equals(data)]).toEqual([200, true]);
  });

  it('refuses those without a certificate, with one of another fleet, with a coordinator\'s, and older TLS', async () => {
    await initFleet(join(folder, 'foreign'), 'fleet', [], Date.now());
    const device = await testDevice('b');
    const [ours, foreign] = await Promise.all([FleetCa.load(fleet()), FleetCa.load(join(folder, 'foreign'))]);
    const key = device.keyPem;
    const life = [Date.now(), 60_000] as const;
    const stranger = await foreign.issueDevice(device.keys.publicKey as never, 'b', 'install-b', ...life);
    const server = await ours.issueServer(device.keys.publicKey, ['b'], ...life);
    for (const wrong of [{}, { key, cert: stranger.chainPem }, { key, cert: server.chainPem }, { ...await enrolled('c'), maxVersion: 'TLSv1.2' }]) await expect(ask(port, as(wrong))).rejects.toThrow(/alert|socket hang up|ECONNRESET/);
  });

  it('turns away a device from the moment it is revoked, as the service does that releases are fetched from', async () => {
    const device = await enrolled('d');
    expect((await ask(port, as(device))).code).toBe(200);
    const releases = new ArtifactServiceClient(coordinator.gateway, grpcCredentials.createSsl(ca(), Buffer.from(device.key), Buffer.from(device.cert)), { 'grpc.ssl_target_name_override': COORDINATOR_NAME });
    const found = () => new Promise<string>((resolve) => releases.findArtifact({ name: 'x' }, (error) => resolve(error?.details ?? '')));
    const read = () => new Promise<string>((resolve) => releases.readArtifact({ sha256: '0'.repeat(64), offset: 0n }).on('data', () => {}).once('error', ({ details }: Error & { details: string }) => resolve(details)));
    expect(await found()).toMatch(/there is no artifact x/);
    expect(await read()).toMatch(/there is no artifact with SHA-256/);
    await coordinator.registry.identities.revoke('d', Date.now(), 'lost');
    coordinator.registry.events.emit({ kind: 'identity', deviceId: 'd' });
    const refused = await ask(port, as(device));
    expect([refused.code, refused.body.toString()]).toEqual([403, 'device d: revoked (lost)\n']);
    expect([await found(), await read()]).toEqual(['device d: revoked (lost)', 'device d: revoked (lost)']);
    releases.close();
  });
});
