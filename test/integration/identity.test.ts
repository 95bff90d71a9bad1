/** A device's identity from its first contact on: the agent's own session and enrolment against a real coordinator. */
import { IdentityServiceClient } from '@moefleet/proto';
import { createLogger, type Logger, parseEnrolmentToken, publicKeyOf } from '@moefleet/runtime';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initFleet } from '../../coordinator/src/identity/init-fleet';
import { startCoordinator, type TestCoordinator, testChannel } from '../../coordinator/src/testing/test-coordinator';
import { noReport, testInfo } from '../../coordinator/src/testing/test-agent';
import { AgentSession } from '../../edge-agent/src/control/agent-session';
import { DeviceIdentity } from '../../edge-agent/src/control/identity';
import { DeviceEnrolment } from '../../edge-agent/src/control/identity-enrolment';
import { StateFolder } from '../../edge-agent/src/control/state-folder';
import { StreamOutbox } from '../../edge-agent/src/control/stream-outbox';
import { BundleKey } from '../../edge-agent/src/upgrade/bundle-key';
import { TelemetryFrame } from '@moefleet/proto';
import { until } from '../harness/ports';
import { startRedis, type TestRedis } from '../harness/redis';

const DAY_MS = 24 * 3_600_000;
let root: string;
let redis: TestRedis;
let coordinator: TestCoordinator;
let running: Device[] = [];

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'moefleet-identity-'));
  await initFleet(join(root, 'fleet'), 'fleet', [], Date.now());
  redis = await startRedis();
  coordinator = await start({});
});
afterEach(async () => {
  for (const device of running) await device.stop();
  running = [];
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
  rmSync(root, { recursive: true, force: true });
});

function start(env: Record<string, string>): Promise<TestCoordinator> {
  return startCoordinator(redis.url, { env: { MOEFLEET_TLS_DIR: join(root, 'fleet'), MOEFLEET_REQUIRE_OPERATOR_TOKEN: 'false', ...env } });
}

function operators(of: TestCoordinator): IdentityServiceClient {
  const { credentials, options } = testChannel(join(root, 'fleet'));
  return new IdentityServiceClient(of.addresses().operatorAddress, credentials, options);
}

async function token(of = coordinator): Promise<string> {
  const client = operators(of);
  const made = await new Promise<{ secret: string }>((resolve, reject) => client.createEnrolmentToken({ labels: { class: 'phone' }, uses: 1, ttlMs: 0n, why: '' }, (error, response) => (error ? reject(error) : resolve(response))));
  client.close();
  return made.secret;
}

/** What an agent has of its identity and its stream, without an engine. */
class Device {
  readonly lines: string[] = [];
  readonly folder: StateFolder;
  readonly identity: DeviceIdentity;
  readonly bundleKey: BundleKey;
  readonly enrolment: DeviceEnrolment;
  readonly session: AgentSession;
  aheadMs = 0;

  constructor(readonly id: string, at: string, token: string | null) {
    this.folder = new StateFolder(join(root, `state-${id}`));
    const log = this.log();
    const now = () => Date.now() + this.aheadMs;
    this.identity = new DeviceIdentity(this.folder, token === null ? null : { text: token, parsed: parseEnrolmentToken(token)! }, now, log);
    const installId = `install-${id}`;
    this.bundleKey = new BundleKey(this.folder, null, log);
    this.enrolment = new DeviceEnrolment({ identity: this.identity, bundleKey: this.bundleKey, coordinator: at, deviceId: id, installId, log, now, random: () => 0.5, channel: () => this.session.channel });
    this.session = new AgentSession({
      coordinator: at, deviceId: id, installId, bootId: `boot-${id}`, outbox: new StreamOutbox(), log, random: () => 0,
      info: () => testInfo({ id }), reported: noReport, telemetry: async () => TelemetryFrame.decode(new Uint8Array()),
      onDesired: () => {}, onTask: () => {}, onCancelTask: () => {}, onLost: () => {}, security: () => this.enrolment.security(),
    });
  }

  async start(): Promise<this> {
    await this.folder.start();
    this.identity.load();
    running.push(this);
    await this.session.start();
    return this;
  }

  async stop(): Promise<void> {
    await this.session.stop();
    await this.folder.stop();
  }

  connected(): Promise<unknown> {
    return until(`${this.id} is connected (${this.lines.at(-1)})`, () => this.session.connected);
  }

  told(what: RegExp): Promise<unknown> {
    return until(`${this.id} tells ${what}`, () => this.lines.some((line) => what.test(line)));
  }

  private log(): Logger {
    const log = createLogger('test', 'silent');
    for (const level of ['info', 'warn', 'error'] as const) {
      log[level] = ((fields: unknown, message: string) => this.lines.push(`${JSON.stringify(fields)} ${message}`)) as unknown as Logger['info'];
    }
    return log;
  }
}

test('enrols with a token, connects with its certificate, and needs no token after a restart', async () => {
  const first = await new Device('phone', coordinator.gateway, await token()).start();
  await first.connected();
  const state = join(root, 'state-phone');
  for (const file of ['device-key.pem', 'device-cert.pem', 'fleet-ca.pem']) expect(statSync(join(state, file)).mode & 0o777).toBe(0o600);
  expect(readFileSync(join(state, 'fleet-ca.pem'), 'utf8').trim()).toBe(readFileSync(join(root, 'fleet', 'ca.pem'), 'utf8').trim());
  const key = readFileSync(join(state, 'device-key.pem'), 'utf8');
  await first.stop();
  await (await new Device('phone', coordinator.gateway, null).start()).connected();
  expect(readFileSync(join(state, 'device-key.pem'), 'utf8')).toBe(key);
});

test('renews over the live connection at two thirds of the life, and uses the new certificate at the next dial', async () => {
  const device = await new Device('renews', coordinator.gateway, await token()).start();
  await device.connected();
  const before = device.identity.certificate!;
  expect(await device.enrolment.renewIfDue()).toBe(false);
  device.aheadMs = 6 * DAY_MS;
  expect(await device.enrolment.renewIfDue()).toBe(true);
  expect(device.identity.certificate!.equals(before)).toBe(false);
  await device.stop();
  await (await new Device('renews', coordinator.gateway, null).start()).connected();
});

test('a device whose certificate expired while it was off comes back with its key alone', async () => {
  const brief = await start({ MOEFLEET_CERTIFICATE_DAYS: '0.00003' });
  const device = await new Device('asleep', brief.gateway, await token(brief)).start();
  await device.connected();
  await device.stop();
  await until('the certificate has expired', () => device.identity.state.t === 'expired');
  const again = await new Device('asleep', brief.gateway, null).start();
  await again.told(/certificate has expired/);
  await again.connected();
  await brief.close();
});

test('a token of another fleet never leaves the device', async () => {
  await initFleet(join(root, 'other'), 'other', [], Date.now());
  const elsewhere = await startCoordinator(redis.url, { env: { MOEFLEET_TLS_DIR: join(root, 'other') } });
  const device = await new Device('astray', elsewhere.gateway, await token()).start();
  await device.told(/does not belong to the fleet of the token.*--coordinator/);
  expect(device.session.connected).toBe(false);
  await elsewhere.close();
});

test('plaintext and TLS that meet are told apart, each with the next step', async () => {
  const without = await new Device('bare', coordinator.gateway, null).start();
  await without.told(/speaks TLS, and this agent has no certificate; enrol it with --enrol-token/);
  const plain = await startCoordinator(redis.url, {});
  const withToken = await new Device('eager', plain.gateway, await token()).start();
  await withToken.told(/speaks plaintext, where nobody enrols; leave out --enrol-token/);
  await plain.close();
});

test('an agent that is revoked while it is connected says so, and serves on', async () => {
  const device = await new Device('revoked', coordinator.gateway, await token()).start();
  await device.connected();
  const client = operators(coordinator);
  await new Promise((resolve) => client.revokeDevice({ deviceId: 'revoked', why: 'lost' }, resolve));
  await device.told(/PERMISSION_DENIED.*revoked \(lost\).*moefleet device unrevoke revoked/);
  expect(device.session.connected).toBe(false);
  client.close();
});

test('what is kept is damaged: told, and a token gets it anew with the same key or another', async () => {
  const device = await new Device('damaged', coordinator.gateway, await token()).start();
  await device.connected();
  await device.stop();
  await device.folder.start();
  device.folder.write('device-cert.pem', 'nonsense');
  await device.folder.stop();
  const again = await new Device('damaged', coordinator.gateway, await token()).start();
  await again.told(/the stored identity cannot be read; enrol again/);
  await again.connected();
});

test('pins the bundle key that the fleet tells at enrolment, and no other that it tells later', async () => {
  const file = join(root, 'fleet', 'bundle-key.pub');
  const newKey = () => publicKeyOf(generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }) as string);
  const before = await new Device('before-the-key', coordinator.gateway, await token()).start();
  await before.connected();
  expect(() => before.bundleKey.read()).toThrow(/no key is pinned.*state-before-the-key\/bundle-key\.pub/);
  writeFileSync(file, 'nonsense');
  await (await new Device('no-key', coordinator.gateway, await token()).start()).connected();

  const [first, second] = [newKey(), newKey()];
  writeFileSync(file, `untrusted comment: a key\n${first.text}\n`);
  const device = await new Device('pins', coordinator.gateway, await token()).start();
  await device.connected();
  expect(device.bundleKey.read().keyId).toBe(first.keyId);
  expect(statSync(join(root, 'state-pins', 'bundle-key.pub')).mode & 0o777).toBe(0o600);
  await device.stop();

  writeFileSync(file, second.text);
  await device.folder.start();
  device.folder.write('device-cert.pem', 'nonsense');
  await device.folder.stop();
  const again = await new Device('pins', coordinator.gateway, await token()).start();
  await again.connected();
  await again.told(new RegExp(`"told":"${second.keyId}","pinned":"${first.keyId}".*the pinned one, which stays`));
  expect(again.bundleKey.read().keyId).toBe(first.keyId);
  // What whoever installed it has named counts first.
  writeFileSync(join(root, 'brought.pub'), second.text);
  expect(new BundleKey(again.folder, join(root, 'brought.pub'), createLogger('test', 'silent')).read().keyId).toBe(second.keyId);
  rmSync(file);
});
