import { status } from '@grpc/grpc-js';
import {
  type ClearCloneResponse, type CreateEnrolmentTokenResponse, IdentityServiceClient, type IssuedCertificate, type ListDeviceIdentitiesResponse, type ListEnrolmentTokensResponse,
  type ReleaseDeviceResponse, type RemoveDeviceResponse, type RevokeDeviceResponse, type RevokeEnrolmentTokenResponse, RouterWindow, type UnrevokeDeviceResponse,
} from '@moefleet/proto';
import { randomBytes, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseEnrolmentToken, printEnrolmentToken } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';
import { EnrolmentCalls, requestOf, type TestDevice, testDevice } from '../testing/test-device';
import { FleetCa } from './fleet-ca';
import { initFleet } from './init-fleet';

const DAY_MS = 24 * 3_600_000;
let folder: string;
let redis: TestRedis;
let coordinator: TestCoordinator;
let operators: IdentityServiceClient;
let stranger: EnrolmentCalls;
let aheadMs = 0;
const now = () => Date.now() + aheadMs;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-enrol-'));
  await initFleet(join(folder, 'fleet'), 'fleet', [], Date.now());
  redis = await startRedis();
  coordinator = await start('coordinator-a');
  const { credentials, options } = testChannel(fleet());
  operators = new IdentityServiceClient(coordinator.addresses().operatorAddress, credentials, options);
  stranger = new EnrolmentCalls(coordinator.gateway, fleet());
});
afterAll(async () => {
  operators.close();
  stranger.close();
  await coordinator.close();
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});
afterEach(() => { aheadMs = 0; });

const fleet = () => join(folder, 'fleet');
const start = (id: string, prefix?: string) => startCoordinator(redis.url, { id, prefix, now, leaseTtlMs: 3000, env: { MOEFLEET_TLS_DIR: fleet(), MOEFLEET_REQUIRE_OPERATOR_TOKEN: 'false' } });

interface Answers {
  createEnrolmentToken: CreateEnrolmentTokenResponse; listEnrolmentTokens: ListEnrolmentTokensResponse; revokeEnrolmentToken: RevokeEnrolmentTokenResponse;
  revokeDevice: RevokeDeviceResponse; unrevokeDevice: UnrevokeDeviceResponse; releaseDevice: ReleaseDeviceResponse; removeDevice: RemoveDeviceResponse; clearClone: ClearCloneResponse;
  listDeviceIdentities: ListDeviceIdentitiesResponse;
}

function ask<M extends keyof Answers>(method: M, request: object): Promise<Answers[M]> {
  const call = operators[method].bind(operators) as unknown as (request: object, done: (error: unknown, response: Answers[M]) => void) => void;
  return new Promise((resolve, reject) => call(request, (error, response) => (error ? reject(error) : resolve(response))));
}

async function token(over: { labels?: Record<string, string>; uses?: number; ttlMs?: bigint } = {}): Promise<string> {
  return (await ask('createEnrolmentToken', { labels: {}, uses: 1, ttlMs: 0n, why: '', ...over })).secret;
}

async function enrolled(id: string, over: Parameters<typeof token>[0] = {}): Promise<{ device: TestDevice; issued: IssuedCertificate }> {
  const device = await testDevice(id);
  return { device, issued: await stranger.enrol(await token(over), device) };
}

const channelOf = (device: TestDevice, issued: IssuedCertificate) => testChannel(fleet(), { key: device.keyPem, certificate: issued.chainPem });
const join_ = (device: TestDevice, issued: IssuedCertificate, over: Partial<TestAgent['options']> = {}, at = coordinator) =>
  TestAgent.join(at.gateway, { id: device.id, installId: device.installId, channel: channelOf(device, issued), ...over });
const refusal = (work: Promise<unknown>) => work.then(() => { throw new Error('was not refused'); }, (error: { code: number; details: string }) => ({ code: error.code, details: error.details }));

describe('enrolment', () => {
  test('a token lets a device in, under its own id, with the labels of the token', async () => {
    const { device, issued } = await enrolled('phone-1', { labels: { class: 'phone', region: 'eu' } });
    const certificate = new X509Certificate(issued.chainPem);
    expect(certificate.subject).toBe('CN=phone-1\nOU=install-phone-1');
    expect(certificate.keyUsage).toEqual(['1.3.6.1.5.5.7.3.2', '1.3.6.1.5.5.7.3.1']);
    expect(Number(issued.notAfterMs) - Date.now()).toBeGreaterThan(6.9 * DAY_MS);
    const agent = await join_(device, issued);
    const { identities } = await ask('listDeviceIdentities', { deviceId: 'phone-1' });
    expect(identities).toEqual([expect.objectContaining({ deviceId: 'phone-1', installId: 'install-phone-1', keyHash: expect.stringMatching(/^[0-9a-f]{64}$/), revokedMs: 0n })]);
    await agent.leave();
  });

  test('a secret is nowhere in Redis', async () => {
    const secret = await token({ uses: 3 });
    const { secret: bytes } = parseEnrolmentToken(secret)!;
    const { tokens } = await ask('listEnrolmentTokens', {});
    const kept = await coordinator.registry.link.run('', (client) => client.hgetall(`${coordinator.prefix}:{enrol}:token:${tokens[0]!.id}`));
    expect(tokens[0]).toMatchObject({ uses: 3, used: 0 });
    expect(JSON.stringify(kept)).not.toContain(bytes.toString('base64url'));
    expect(JSON.stringify(kept)).not.toContain(bytes.toString('hex'));
  });

  test('a token counts devices, not attempts', async () => {
    const secret = await token({ uses: 2 });
    const [one, two, three] = [await testDevice('u-1'), await testDevice('u-2'), await testDevice('u-3')];
    await stranger.enrol(secret, one);
    await stranger.enrol(secret, one);
    await stranger.enrol(secret, two);
    expect(await refusal(stranger.enrol(secret, three))).toEqual({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/used up \(2 of 2 devices\).*moefleet token create/) });
    expect(await stranger.enrol(secret, one)).toBeDefined();
  });

  test('of many devices that come at once with one token, as many get in as it has uses', async () => {
    const secret = await token({ uses: 3 });
    const devices = await Promise.all(Array.from({ length: 10 }, (_unused, at) => testDevice(`rush-${at}`)));
    const outcomes = await Promise.allSettled(devices.map((device) => stranger.enrol(secret, device)));
    expect(outcomes.filter(({ status: outcome }) => outcome === 'fulfilled')).toHaveLength(3);
  });

  test.each<[string, () => Promise<string>, RegExp]>([
    ['an expired one', async () => { const made = await token({ ttlMs: 1000n }); aheadMs = 2000; return made; }, /expired at/],
    ['a revoked one', async () => {
      const made = await token();
      await ask('revokeEnrolmentToken', { id: (await ask('listEnrolmentTokens', {})).tokens[0]!.id, why: 'was on a slide' });
      return made;
    }, /revoked \(was on a slide\)/],
    ['one of nobody', async () => printEnrolmentToken({ secret: randomBytes(32), caFingerprint: 'ab'.repeat(32) }), /not known to this fleet/],
  ])('a token that does not count is refused by name: %s', async (_name, make, why) => {
    expect(await refusal(stranger.enrol(await make(), await testDevice('late')))).toEqual({ code: status.PERMISSION_DENIED, details: expect.stringMatching(why) });
  });

  test('a token of 1 MB of nothing, garbage for a request, another name, a foreign or weak key: each refused, and costs no use', async () => {
    const secret = await token();
    const device = await testDevice('csr');
    const good = await requestOf(device);
    const broken = Buffer.from(good);
    broken[broken.length - 5]! ^= 0x55;
    const cases: [Promise<unknown>, RegExp][] = [
      [stranger.enrol('x'.repeat(900_000), device), /token: "900000 characters" is not an enrolment token/],
      [stranger.enrol(secret, device, { certificateRequest: randomBytes(300) }), /certificate_request: .* is not a PKCS #10 request/],
      [stranger.enrol(secret, device, { certificateRequest: Buffer.alloc(0) }), /0 bytes/],
      [stranger.enrol(secret, device, { certificateRequest: randomBytes(5000) }), /5000 bytes/],
      [stranger.enrol(secret, device, { certificateRequest: good.subarray(0, 100) }), /certificate_request/],
      [stranger.enrol(secret, device, { certificateRequest: broken }), /certificate_request/],
      [stranger.enrol(secret, device, { certificateRequest: await requestOf(device, { id: 'other' }) }), /subject\.CN: "other" is not csr/],
      [stranger.enrol(secret, device, { certificateRequest: await requestOf(device, { installId: 'other' }) }), /subject\.OU: "other"/],
      [stranger.enrol(secret, await testDevice('csr', 'install-csr', { name: 'ECDSA', namedCurve: 'P-384' })), /key: "ECDSA P-384" is not an ECDSA P-256 key/],
      [stranger.enrol(secret, { ...device, id: '../etc' }), /device_id/],
    ];
    for (const [attempt, why] of cases) expect(await refusal(attempt)).toEqual({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(why) });
    expect(await stranger.enrol(secret, device)).toBeDefined();
  });

  test('an id that is enrolled is not given to another key, until an operator releases it', async () => {
    const { device, issued } = await enrolled('taken');
    const other = await testDevice('taken', 'install-other');
    const secret = await token();
    expect(await refusal(stranger.enrol(secret, other))).toEqual({ code: status.ALREADY_EXISTS, details: expect.stringMatching(/belongs to another installation, enrolled on host "host-taken".*moefleet device release taken/) });
    const agent = await join_(device, issued);
    await ask('releaseDevice', { deviceId: 'taken', why: 'new card' });
    await until('the old installation is cut off', () => agent.ended);
    expect(agent.ended).toMatchObject({ code: status.PERMISSION_DENIED });
    const again = await stranger.enrol(secret, other);
    expect(await refusal(join_(device, issued))).toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/another installation has enrolled/) });
    await (await join_(other, again)).leave();
  });
});

test('a device that is removed is cut off and forgotten, and its id is the next installation\'s, with nothing of its own', async () => {
  const { device, issued } = await enrolled('scrapped', { labels: { class: 'phone' } });
  const agent = await join_(device, issued);
  const { registry } = coordinator;
  await registry.windows.push('scrapped', RouterWindow.fromPartial({ modelHash: 'm' }));
  await registry.devices.changeLabels('scrapped', { site: 'attic' }, []);
  expect((await ask('removeDevice', { deviceId: 'scrapped', why: 'water' })).identity).toMatchObject({ deviceId: 'scrapped', keyHash: expect.stringMatching(/^[0-9a-f]{64}$/) });
  await until('its stream is cut', () => agent.ended);
  expect(await registry.devices.ids()).not.toContain('scrapped');
  expect((await registry.link.run('', (client) => client.keys('*:{dev:scrapped}:*'))).map((key) => key.split(':').at(-1)).sort()).toEqual(['fence', 'identity']);
  expect(await refusal(join_(device, issued))).toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/the id was released/) });
  expect(await refusal(ask('removeDevice', { deviceId: 'scrapped', why: '' }))).toEqual({ code: status.NOT_FOUND, details: 'device scrapped is not known; see the list of devices' });
  expect(await refusal(ask('removeDevice', { deviceId: 'ghost', why: '' }))).toMatchObject({ code: status.NOT_FOUND });

  const next = await testDevice('scrapped', 'install-next');
  await (await join_(next, await stranger.enrol(await token(), next))).leave();
  expect(await registry.devices.read('scrapped')).toMatchObject({ operatorLabels: {}, desired: { t: 'none' } });
  expect(await registry.windows.list('scrapped')).toEqual([]);
});

describe('the agents\' stream', () => {
  test('takes no device without a certificate, nor one of another CA, nor a coordinator\'s', async () => {
    const { device } = await enrolled('bare');
    const bare = { id: 'bare', installId: 'install-bare' };
    expect(await refusal(TestAgent.join(coordinator.gateway, { ...bare, channel: testChannel(fleet()) }))).toMatchObject({ code: status.UNAUTHENTICATED, details: expect.stringMatching(/--enrol-token/) });
    await initFleet(join(folder, 'foreign'), 'foreign', [], Date.now());
    const foreign = await FleetCa.load(join(folder, 'foreign'));
    const ours = await FleetCa.load(fleet());
    const publicKey = device.keys.publicKey as never;
    for (const made of [await foreign.issueDevice(publicKey, 'bare', 'install-bare', Date.now(), DAY_MS), await ours.issueServer(publicKey, [], Date.now(), DAY_MS)]) {
      expect(await refusal(join_(device, { chainPem: made.chainPem, notAfterMs: 0n }))).toMatchObject({ code: status.UNAUTHENTICATED });
    }
  });

  test('a device cannot say that it is another, nor another installation', async () => {
    const { device, issued } = await enrolled('honest');
    expect(await refusal(join_(device, issued, { id: 'victim' }))).toEqual({ code: status.PERMISSION_DENIED, details: 'device honest: says hello as victim; its certificate is for its own id alone' });
    expect(await refusal(join_(device, issued, { installId: 'elsewhere' }))).toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/installation elsewhere/) });
  });

  test('a reconnect takes over from its half-open predecessor', async () => {
    const { device, issued } = await enrolled('half-open');
    const first = await join_(device, issued);
    const second = await join_(device, issued);
    await until('the first is fenced off', () => first.ended);
    expect(first.ended).toMatchObject({ code: status.ABORTED });
    await second.leave();
  });
});

describe('renewal', () => {
  test('a current certificate is renewed for its own key alone', async () => {
    const { device, issued } = await enrolled('renew');
    const calls = new EnrolmentCalls(coordinator.gateway, fleet(), { key: device.keyPem, certificate: issued.chainPem });
    aheadMs = 1_800_000;
    const next = await calls.renew(await requestOf(device));
    expect(next.notAfterMs).toBeGreaterThan(issued.notAfterMs);
    expect(await refusal(calls.renew(await requestOf({ ...await testDevice('renew') })))).toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/another key/) });
    expect(await refusal(stranger.renew(await requestOf(device)))).toMatchObject({ code: status.UNAUTHENTICATED });
    calls.close();
    aheadMs = 0;
    await (await join_(device, next)).leave();
  });

  test('an expired certificate lets nobody in; within the grace period its key gets another, after that only a token helps', async () => {
    const { device, issued } = await enrolled('asleep');
    const old = new X509Certificate(issued.chainPem).raw;
    aheadMs = 8 * DAY_MS;
    expect(await refusal(join_(device, issued))).toMatchObject({ code: status.UNAUTHENTICATED, details: expect.stringMatching(/asleep: its certificate expired at/) });
    expect(await refusal(stranger.reenrol(old, await requestOf({ ...await testDevice('asleep') })))).toMatchObject({ code: status.INVALID_ARGUMENT });
    expect(await stranger.reenrol(old, await requestOf(device))).toMatchObject({ notAfterMs: expect.any(BigInt) });
    aheadMs = 38 * DAY_MS;
    expect(await refusal(stranger.reenrol(old, await requestOf(device)))).toMatchObject({ code: status.FAILED_PRECONDITION, details: expect.stringMatching(/longer ago than the grace period.*--enrol-token/) });
    expect(await stranger.enrol(await token(), device)).toBeDefined();
    const ca = new X509Certificate(readFileSync(join(fleet(), 'ca.pem'))).raw;
    expect(await refusal(stranger.reenrol(ca, await requestOf(device)))).toMatchObject({ code: status.UNAUTHENTICATED });
    expect(await refusal(stranger.reenrol(randomBytes(400), await requestOf(device)))).toMatchObject({ code: status.INVALID_ARGUMENT });
  });
});

describe('revocation', () => {
  test('cuts the live stream on whichever coordinator has it, holds after a restart, and can be taken back', async () => {
    const other = await start('coordinator-b', coordinator.prefix);
    const { device, issued } = await enrolled('stolen');
    const agent = await join_(device, issued, {}, other);
    await ask('revokeDevice', { deviceId: 'stolen', why: 'lost on a train' });
    await until('the stream is cut', () => agent.ended);
    expect(agent.ended).toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/device stolen: revoked \(lost on a train\).*moefleet device unrevoke stolen/) });
    await other.close();
    const restarted = await start('coordinator-b', coordinator.prefix);
    expect(await refusal(join_(device, issued, {}, restarted))).toMatchObject({ code: status.PERMISSION_DENIED });
    expect(await refusal(stranger.enrol(await token(), device))).toMatchObject({ code: status.PERMISSION_DENIED, details: expect.stringMatching(/revoked/) });
    expect(await refusal(stranger.reenrol(new X509Certificate(issued.chainPem).raw, await requestOf(device)))).toMatchObject({ code: status.PERMISSION_DENIED });
    await ask('unrevokeDevice', { deviceId: 'stolen', why: 'found' });
    await (await join_(device, issued, {}, restarted)).leave();
    await restarted.close();
  });

  test('is noticed without the wake-up too', async () => {
    const { device, issued } = await enrolled('quiet');
    const agent = await join_(device, issued);
    await coordinator.registry.identities.revoke('quiet', Date.now(), '');
    await until('the stream is cut at the next look', () => agent.ended);
    expect(agent.ended).toMatchObject({ code: status.PERMISSION_DENIED });
  });
});

describe('an installation that runs twice', () => {
  const boot = (device: TestDevice, issued: IssuedCertificate, bootId: string) => join_(device, issued, { bootId, hostname: `board-${bootId}` });

  test('is marked after three returns, and one boot is held to until an operator clears it', async () => {
    const { device, issued } = await enrolled('cloned');
    for (const bootId of ['one', 'two', 'one', 'two']) await boot(device, issued, bootId);
    expect(await refusal(boot(device, issued, 'one'))).toEqual({ code: status.FAILED_PRECONDITION, details: expect.stringMatching(/cloned runs twice: .*on host "board-two".*moefleet device clear-clone cloned/) });
    const { identities } = await ask('listDeviceIdentities', { deviceId: 'cloned' });
    expect(identities[0]!.clones.map(({ hostname }) => hostname).sort()).toEqual(['board-one', 'board-two']);
    expect(identities[0]!.clonedMs).toBeGreaterThan(0n);
    const again = await boot(device, issued, 'two');
    await ask('clearClone', { deviceId: 'cloned', why: 'second card destroyed' });
    await (await boot(device, issued, 'one')).leave();
    expect(again.ended).toMatchObject({ code: status.ABORTED });
  });

  test('is never seen in an agent that merely restarts, however often', async () => {
    const { device, issued } = await enrolled('restless');
    for (let at = 0; at < 20; at += 1) await boot(device, issued, `boot-${at}`);
    for (let at = 0; at < 4; at += 1) await boot(device, issued, 'boot-19');
    expect((await ask('listDeviceIdentities', { deviceId: 'restless' })).identities[0]!.clonedMs).toBe(0n);
  });
});
