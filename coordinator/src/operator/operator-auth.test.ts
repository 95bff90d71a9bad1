/** Tokens and roles, over real gRPC. */
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { AccessServiceClient, type AuditEntry, bearerInterceptor, type CreateOperatorResponse, InventoryServiceClient, LearnerServiceClient, OperatorServiceClient, Role } from '@moefleet/proto';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { isToken, newToken } from '../registry/operator-store';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let folder: string;
let coordinator: TestCoordinator;
let admin: string;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-auth-'));
  coordinator = await start();
  admin = readFileSync(join(folder, 'admin'), 'utf8').trim();
});
afterEach(async () => {
  await coordinator.close();
  rmSync(folder, { recursive: true });
});

function start(prefix?: string): Promise<TestCoordinator> {
  return startCoordinator(redis.url, { ...(prefix ? { prefix } : {}), env: { MOEFLEET_REQUIRE_OPERATOR_TOKEN: 'true', MOEFLEET_ADMIN_TOKEN_FILE: join(folder, 'admin') } });
}

type Client = Record<string, (request: unknown, metadata: Metadata, done: (error: ServiceError | null, response: unknown) => void) => void> & { close(): void };

/** One unary call with `token`, or with whatever `metadata` says. */
async function ask<Response = unknown>(Service: new (...args: never[]) => unknown, method: string, request: unknown, token: string | null, metadata = new Metadata()): Promise<Response> {
  const interceptors = token === null ? [] : [bearerInterceptor(token)];
  const client = new (Service as new (...args: unknown[]) => Client)(coordinator.addresses().operatorAddress, credentials.createInsecure(), { interceptors });
  try {
    return await new Promise<Response>((resolve, reject) => client[method]!(request, metadata, (error, response) => (error ? reject(error) : resolve(response as Response))));
  } finally {
    client.close();
  }
}

async function create(name: string, role: Role, ttlMs = 0n): Promise<string> {
  return (await ask<CreateOperatorResponse>(AccessServiceClient, 'createOperator', { name, role, ttlMs, why: 'test' }, admin)).token;
}

const list = (token: string | null, metadata?: Metadata) => ask(OperatorServiceClient, 'listDevices', { selector: undefined, pageSize: 0, pageToken: '' }, token, metadata);
const refused = (code: status, says: RegExp) => expect.objectContaining({ code, details: expect.stringMatching(says) as string }) as ServiceError;

test('the first admin is made once, in a file for its own user alone; Redis holds no token', async () => {
  expect(isToken(admin)).toBe(true);
  expect(statSync(join(folder, 'admin')).mode & 0o777).toBe(0o600);
  await list(admin);
  const { link } = coordinator.registry;
  const keys = await link.run('keys', (client) => client.keys(`${coordinator.prefix}:{operators}*`));
  const dump = JSON.stringify(await Promise.all(keys.map((key) => link.run(key, (client) => client.hgetall(key)))));
  expect(dump).toContain(createHash('sha256').update(admin).digest('hex'));
  expect(dump).not.toContain(admin);
  const second = await start(coordinator.prefix);
  await second.close();
  expect(readFileSync(join(folder, 'admin'), 'utf8').trim()).toBe(admin);
});

test('a token that was provided in the file is taken; a file that holds something else is refused', async () => {
  const provided = newToken();
  writeFileSync(join(folder, 'admin'), `${provided}\n`);
  await coordinator.close();
  coordinator = await start();
  await list(provided);
  writeFileSync(join(folder, 'admin'), 'my shopping list');
  await expect(start()).rejects.toThrow(/holds no operator token; remove it/);
});

test.each([
  ['no token', () => list(null), /ListDevices needs a token of role viewer; give one with --token-file/],
  ['a token nobody has', () => list(newToken()), /unknown or revoked/],
  ['what is no token', () => list('x'.repeat(200)), /unknown or revoked/],
  ['another scheme', () => { const metadata = new Metadata(); metadata.set('authorization', 'Basic YTpi'); return list(null, metadata); }, /sent as "authorization: Bearer TOKEN"/],
])('%s is UNAUTHENTICATED', async (_, act, says) => {
  await expect(act()).rejects.toEqual(refused(status.UNAUTHENTICATED, says));
});

test('each role may what is its own; the refusal names the role needed', async () => {
  const [viewer, operator, learner] = [await create('vera', Role.ROLE_VIEWER), await create('otto', Role.ROLE_OPERATOR), await create('learner-1', Role.ROLE_LEARNER)];
  const label = (token: string) => ask(InventoryServiceClient, 'changeLabels', { target: { kind: { $case: 'all', value: true } }, set: { a: 'b' }, remove: [], why: '' }, token);
  const learnable = (token: string) => ask(LearnerServiceClient, 'listLearnable', {}, token);
  await list(viewer);
  await expect(label(viewer)).rejects.toEqual(refused(status.PERMISSION_DENIED, /^ChangeLabels needs the role operator; "vera" is viewer$/));
  await label(operator);
  await expect(ask(AccessServiceClient, 'listOperators', {}, operator)).rejects.toEqual(refused(status.PERMISSION_DENIED, /needs the role admin; "otto" is operator/));
  await learnable(learner);
  await expect(list(learner)).rejects.toEqual(refused(status.PERMISSION_DENIED, /needs the role viewer; "learner-1" is learner/));
  await expect(learnable(operator)).rejects.toEqual(refused(status.PERMISSION_DENIED, /needs the role learner/));
  await learnable(admin);
});

test('a stream is refused like any other call', async () => {
  const viewer = await create('vera', Role.ROLE_VIEWER);
  const client = new OperatorServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure(), { interceptors: [bearerInterceptor(viewer)] });
  const stream = client.changeConfig({ target: { kind: { $case: 'all', value: true } }, change: { $case: 'clearLambda', value: {} }, why: '', timeoutMs: 0, stageMany: false });
  const error = await new Promise<ServiceError>((resolve) => stream.on('data', () => {}).on('error', resolve));
  expect(error).toEqual(refused(status.PERMISSION_DENIED, /ChangeConfig needs the role operator/));
  expect((await coordinator.registry.audit.latest(0, 100, ({ what }) => what.includes('routing'))).entries).toEqual([]);
  client.close();
});

test('a revoked token is cut at its next call, an expired one by itself; the name is free again', async () => {
  const viewer = await create('vera', Role.ROLE_VIEWER);
  await expect(create('vera', Role.ROLE_VIEWER)).rejects.toEqual(refused(status.ALREADY_EXISTS, /vera has a token in force/));
  await list(viewer);
  await ask(AccessServiceClient, 'revokeOperator', { name: 'vera', why: 'left' }, admin);
  await expect(list(viewer)).rejects.toEqual(refused(status.UNAUTHENTICATED, /unknown or revoked/));
  await expect(ask(AccessServiceClient, 'revokeOperator', { name: 'vera', why: '' }, admin)).rejects.toEqual(refused(status.NOT_FOUND, /no token in force/));
  const short = await create('vera', Role.ROLE_VIEWER, 300n);
  await until('it has expired', () => list(short).then(() => false, (error: ServiceError) => /"vera" expired at/.test(error.details)), 5000, 20);
  await list(await create('vera', Role.ROLE_VIEWER));
});

test('the audit log names who did it', async () => {
  await create('otto', Role.ROLE_OPERATOR);
  const { entries } = await coordinator.registry.audit.latest(0, 10, () => true);
  expect(entries.map(({ who, what }: Pick<AuditEntry, 'who' | 'what'>) => [who, what])).toEqual([['the coordinator', 'operator admin created as the first admin'], ['admin', 'operator otto created']]);
  expect(entries[1]!.after).toBe('{"name":"otto","role":"operator","ttlMs":0}');
});

test('health needs no token', async () => {
  const { makeGenericClientConstructor } = await import('@grpc/grpc-js');
  const raw = (bytes: Buffer) => bytes;
  const Health = makeGenericClientConstructor({ check: { path: '/grpc.health.v1.Health/Check', requestStream: false, responseStream: false, requestSerialize: raw, requestDeserialize: raw, responseSerialize: raw, responseDeserialize: raw } }, 'Health');
  expect(await ask(Health as never, 'check', Buffer.alloc(0), null)).toEqual(Buffer.from([8, 1]));
});

test('damaged operators in Redis are an error that names them, never a way in', async () => {
  const viewer = await create('vera', Role.ROLE_VIEWER);
  await coordinator.registry.link.run('k', (client) => client.hset(`${coordinator.prefix}:{operators}`, 'vera', '{"name":"vera","role":"emperor"}'));
  await expect(list(viewer)).rejects.toEqual(refused(status.DATA_LOSS, /operator "vera": name or role is none/));
});
