import { X509Certificate } from 'node:crypto';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AddressInfo } from 'node:net';
import { connect as tlsConnect, type ConnectionOptions, createServer as createTlsServer, type TLSSocket } from 'node:tls';
import { COORDINATOR_NAME, createLogger } from '@moefleet/runtime';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { call, startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';
import { OperatorServiceClient } from '@moefleet/proto';
import { testDevice } from '../testing/test-device';
import { deviceHost, FleetCa } from './fleet-ca';
import { initFleet } from './init-fleet';
import { ServerCertificate } from './server-certificate';

const DAY_MS = 24 * 3_600_000;
const log = createLogger('test', 'silent');
let root: string;

beforeAll(() => { root = mkdtempSync(join(tmpdir(), 'moefleet-ca-')); });
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function fleet(name: string): Promise<string> {
  const folder = join(root, name);
  await initFleet(folder, name, ['fleet.example.org', '10.0.0.5'], Date.now());
  return folder;
}

test('files of a new fleet are for their owner alone, and are never overwritten', async () => {
  const folder = await fleet('one');
  for (const file of ['ca.pem', 'ca-key.pem', 'fleet.json']) expect(statSync(join(folder, file)).mode & 0o777).toBe(0o600);
  const before = readFileSync(join(folder, 'ca-key.pem'), 'utf8');
  await expect(initFleet(folder, 'one', [], Date.now())).rejects.toThrow(/ca\.pem: is there already.*choose another --dir/);
  expect(readFileSync(join(folder, 'ca-key.pem'), 'utf8')).toBe(before);
  const ca = await FleetCa.load(folder);
  expect(ca.fingerprint).toBe(new X509Certificate(readFileSync(join(folder, 'ca.pem'))).fingerprint256.replaceAll(':', '').toLowerCase());
});

test.each([['name', 'a b', []], ['host', 'ok', ['not a host']], ['host', 'ok', ['-x']]])('a fleet whose %s makes no sense is not made', async (field, name, hosts) => {
  await expect(initFleet(join(root, 'never'), name, hosts, Date.now())).rejects.toThrow(new RegExp(`^${field}: `));
});

test('a damaged folder is an error that names the file and the next step', async () => {
  await expect(FleetCa.load(join(root, 'nowhere'))).rejects.toThrow(/nowhere\/ca\.pem: cannot be read \(ENOENT\).*moefleet fleet init/);
  const [mixed, other] = [await fleet('mixed'), await fleet('other')];
  copyFileSync(join(other, 'ca-key.pem'), join(mixed, 'ca-key.pem'));
  await expect(FleetCa.load(mixed)).rejects.toThrow(/ca-key\.pem: is not the key of ca\.pem/);
  writeFileSync(join(mixed, 'ca-key.pem'), 'nonsense');
  await expect(FleetCa.load(mixed)).rejects.toThrow(/ca-key\.pem: is not a private key/);
  writeFileSync(join(other, 'fleet.json'), '[1]');
  await expect(FleetCa.load(other)).rejects.toThrow(/fleet\.json: is not JSON with a name and hosts/);
});

test('a coordinator renews its certificate at two thirds of its life, with a new key', async () => {
  let nowMs = Date.now();
  const certificate = new ServerCertificate({ folder: await fleet('renewed'), hosts: ['h'], now: () => nowMs }, log);
  await certificate.start();
  const credentials = certificate.credentials(true);
  const shown = () => new X509Certificate(String(credentials._getSecureContextOptions()!.cert));
  const first = shown();
  expect(first.subjectAltName).toMatch(/fleet\.example\.org.*10\.0\.0\.5/);
  expect(first.keyUsage).toEqual(['1.3.6.1.5.5.7.3.1']);
  expect(await certificate.renewIfDue()).toBe(false);
  nowMs += 20.1 * DAY_MS;
  expect(await certificate.renewIfDue()).toBe(true);
  expect(shown().publicKey.equals(first.publicKey)).toBe(false);
  expect(Date.parse(shown().validTo)).toBeGreaterThan(Date.parse(first.validTo) + 20 * DAY_MS);
  await certificate.stop();
});

test.each([COORDINATOR_NAME, 'localhost', '127.0.0.1', 'fleet.example.org', '*', '*.internal'])('a device that is called %s cannot pass for a coordinator, and can serve devices beside it', async (id) => {
  const folder = join(root, `named-${Buffer.from(id).toString('hex')}`);
  await initFleet(folder, 'fleet', ['fleet.example.org'], Date.now());
  const ca = await FleetCa.load(folder);
  const { keys, keyPem } = await testDevice(id);
  const { chainPem } = await ca.issueDevice(keys.publicKey as never, id, 'install', Date.now(), DAY_MS);
  expect(new X509Certificate(chainPem).keyUsage).toEqual(['1.3.6.1.5.5.7.3.2', '1.3.6.1.5.5.7.3.1']);
  const server = createTlsServer({ key: keyPem, cert: chainPem }, (socket) => socket.end());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const dial = (servername: string) => handshake(address, { ca: ca.certificatePem, servername });
  for (const name of [COORDINATOR_NAME, 'localhost', 'fleet.example.org']) expect(await dial(name)).toMatch(/does not match certificate's altnames/);
  // Whoever dials an address holds that against the certificate.
  expect(await handshake(address, { ca: ca.certificatePem })).toMatch(/does not match certificate's altnames|is not in the cert's list/);
  expect(await dial(deviceHost(id))).toBe('TLSv1.3');
  await new Promise((resolve) => server.close(resolve));
});

test('no coordinator gets the name of a device', async () => {
  const ca = await FleetCa.load(await fleet('names'));
  const { keys } = await testDevice('a');
  const { chainPem } = await ca.issueServer(keys.publicKey, [deviceHost('a'), deviceHost('a').toUpperCase(), `${deviceHost('a')}.`], Date.now(), DAY_MS);
  expect(new X509Certificate(chainPem).subjectAltName).not.toMatch(/invalid/i);
});

describe('a coordinator with the folder of a fleet', () => {
  let redis: TestRedis;
  let coordinator: TestCoordinator;
  let folder: string;

  beforeAll(async () => {
    redis = await startRedis();
    folder = await fleet('served');
    coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_TLS_DIR: folder } });
  });
  afterAll(async () => {
    await coordinator.close();
    await redis.close();
  });

  test('serves operators who have its CA, and nobody who has another', async () => {
    expect(await call(coordinator, 'listDevices', { selector: undefined, pageSize: 0, pageToken: '' })).toEqual({ devices: [], nextPageToken: '' });
    const { operatorAddress } = coordinator.addresses();
    for (const wrong of [testChannel(await fleet('wrong')), testChannel(null)]) {
      const client = new OperatorServiceClient(operatorAddress, wrong.credentials, { ...wrong.options, 'grpc.enable_retries': 0 });
      const error = await new Promise((resolve) => client.listDevices({ selector: undefined, pageSize: 0, pageToken: '' }, (failure) => resolve(failure)));
      expect(error).toMatchObject({ code: 14 });
      client.close();
    }
  });

  test.each(['gatewayAddress', 'operatorAddress'] as const)('speaks TLS 1.3 alone at its %s', async (which) => {
    const address = coordinator.addresses()[which];
    const ca = readFileSync(join(folder, 'ca.pem'));
    expect(await handshake(address, { ca, servername: COORDINATOR_NAME, ALPNProtocols: ['h2'] })).toBe('TLSv1.3');
    expect(await handshake(address, { ca, servername: COORDINATOR_NAME, ALPNProtocols: ['h2'], maxVersion: 'TLSv1.2' })).toMatch(/alert protocol version/);
  });
});

function handshake(address: string, options: ConnectionOptions): Promise<string> {
  const [host, port] = address.split(':');
  return new Promise((resolve) => {
    const socket: TLSSocket = tlsConnect({ ...options, host, port: Number(port) }, () => {
      resolve(socket.getProtocol() ?? 'none');
      socket.destroy();
    });
    socket.on('error', (error) => resolve(error.message));
  });
}
