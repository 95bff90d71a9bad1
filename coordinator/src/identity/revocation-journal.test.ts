import { status } from '@grpc/grpc-js';
import { IdentityServiceClient } from '@moefleet/proto';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { dump } from '../testing/redis-dump';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';
import { EnrolmentCalls, testDevice } from '../testing/test-device';
import { initFleet } from './init-fleet';
import { REVOCATIONS_FILE } from './revocation-journal';

let folder: string;
let redis: TestRedis;
let coordinator: TestCoordinator;
let operators: IdentityServiceClient;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-journal-'));
  await initFleet(folder, 'fleet', [], Date.now());
  redis = await startRedis({ appendOnly: false });
  await start();
});
afterEach(async () => {
  await stop();
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});

async function start(): Promise<void> {
  coordinator = await startCoordinator(redis.url, { prefix: 'journal', env: { MOEFLEET_TLS_DIR: folder } });
  const { credentials, options } = testChannel(folder);
  operators = new IdentityServiceClient(coordinator.addresses().operatorAddress, credentials, options);
}

async function stop(): Promise<void> {
  operators.close();
  await coordinator.close();
}

function ask<T>(method: 'createEnrolmentToken' | 'revokeEnrolmentToken' | 'releaseDevice' | 'revokeDevice' | 'unrevokeDevice', request: object): Promise<T> {
  const client = operators as unknown as Record<string, (request: object, done: (error: unknown, answer: T) => void) => void>;
  return new Promise((resolve, reject) => client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer))));
}

const newToken = () => ask<{ secret: string; token: { id: string } }>('createEnrolmentToken', { labels: {}, uses: 5, ttlMs: 0n, why: '' });

async function enrol(secret: string, id: string): Promise<() => Promise<TestAgent>> {
  const device = await testDevice(id);
  const calls = new EnrolmentCalls(coordinator.gateway, folder);
  try {
    const { chainPem } = await calls.enrol(secret, device);
    return () => TestAgent.join(coordinator.gateway, { id, installId: device.installId, channel: testChannel(folder, { key: device.keyPem, certificate: chainPem }) });
  } finally {
    calls.close();
  }
}

async function restore(): Promise<void> {
  await redis.stop();
  await until('it is noticed', () => !coordinator.registry.link.up, 5000, 5);
  await redis.start();
  await until('it is back', () => coordinator.registry.link.up, 10_000, 5);
}

const identity = () => coordinator.registry.identities.read('lost');

test('a Redis restored from an older dump lets in neither a revoked device nor who has a revoked token', async () => {
  const { secret, token } = await newToken();
  const join_ = await enrol(secret, 'lost');
  const agent = await join_();
  await dump(redis.url);
  await ask('revokeDevice', { deviceId: 'lost', why: 'left on a train' });
  await ask('revokeEnrolmentToken', { id: token.id, why: 'was posted' });
  await until('it is cut', () => agent.ended, 5000, 10);
  const revokedMs = (await identity())!.revokedMs;

  await restore();
  await until('it is revoked again', async () => (await identity())?.revokedMs === revokedMs, 5000, 10);
  await until('the token too', async () => (await coordinator.registry.identities.token(token.id))?.revokedMs, 5000, 10);
  await expect(join_()).rejects.toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringContaining('left on a train') as string });
  await expect(enrol(secret, 'another')).rejects.toMatchObject({ code: status.PERMISSION_DENIED });
  const { entries } = await coordinator.registry.audit.latest(0, 10, () => true);
  expect(entries.map((entry) => entry.what)).toEqual(expect.arrayContaining(['revoke device lost again: Redis had lost it', `revoke enrolment token ${token.id} again: Redis had lost it`]));
  expect(statSync(join(folder, REVOCATIONS_FILE)).mode & 0o777).toBe(0o600);
});

test('a Redis restored from an older dump gives a token no further uses, and a released id not back', async () => {
  const { secret, token } = await ask<{ secret: string; token: { id: string } }>('createEnrolmentToken', { labels: {}, uses: 2, ttlMs: 0n, why: '' });
  const join_ = await enrol(secret, 'lost');
  await dump(redis.url);
  await enrol(secret, 'second');
  await ask('releaseDevice', { deviceId: 'lost', why: 'sold' });
  await until('the journal has it', () => readFileSync(join(folder, REVOCATIONS_FILE), 'utf8').includes('"release"'), 5000, 10);

  await restore();
  await until('it is released again', async () => (await identity())?.releasedMs, 5000, 10);
  await until('both uses are known', async () => (await coordinator.registry.identities.token(token.id))?.used === 2, 5000, 10);
  await expect(enrol(secret, 'third')).rejects.toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringContaining('used up') as string });
  await expect(join_()).rejects.toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringContaining('released') as string });
  const again = await enrol((await newToken()).secret, 'lost');
  (await again()).kill();
  await until('the journal says so', () => readFileSync(join(folder, REVOCATIONS_FILE), 'utf8').match(/"release","id":"lost".*"over":true/), 5000, 10);
});

test('an emptied Redis, and a coordinator started after that, do not let a revoked device in', async () => {
  const join_ = await enrol((await newToken()).secret, 'lost');
  await ask('revokeDevice', { deviceId: 'lost', why: '' });
  await until('the journal has it', () => readFileSync(join(folder, REVOCATIONS_FILE), 'utf8').includes('"lost"'), 5000, 10);
  await stop();
  await redis.stop();
  await redis.start();
  await start();
  await expect(join_()).rejects.toMatchObject({ code: status.PERMISSION_DENIED });
});

test('a revocation that was taken back stays so, also where a coordinator was off meanwhile and its journal is damaged', async () => {
  const join_ = await enrol((await newToken()).secret, 'lost');
  await ask('revokeDevice', { deviceId: 'lost', why: '' });
  await until('the journal has it', () => readFileSync(join(folder, REVOCATIONS_FILE), 'utf8').includes('"lost"'), 5000, 10);
  const before = readFileSync(join(folder, REVOCATIONS_FILE));
  await ask('unrevokeDevice', { deviceId: 'lost', why: '' });
  await until('it is taken back', () => readFileSync(join(folder, REVOCATIONS_FILE), 'utf8').includes('"over":true'), 5000, 10);
  await stop();
  // As the folder of a coordinator that has its own copy of it.
  rmSync(join(folder, REVOCATIONS_FILE));
  appendFileSync(join(folder, REVOCATIONS_FILE), `${before.toString()}{"of":"device","id":\nnonsense\n{"of":"device",`);
  await start();
  expect(readFileSync(join(folder, REVOCATIONS_FILE), 'utf8')).toMatch(/^\{"of":"device","id":"lost".*"over":true\}$/m);
  const agent = await join_();
  expect((await identity())!.revokedMs).toBe(0);
  agent.kill();
});
