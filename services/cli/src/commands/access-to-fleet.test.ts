/** `moefleet token` and `moefleet device` against a real coordinator with TLS: what lets a device in, and what keeps it out. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initFleet } from '../../../../coordinator/src/identity/init-fleet';
import { type TestCoordinator, startCoordinator, testChannel } from '../../../../coordinator/src/testing/test-coordinator';
import { EnrolmentCalls, testDevice } from '../../../../coordinator/src/testing/test-device';
import { until } from '../../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCaptured } from '../testing/run-captured';

let folder: string;
let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-access-'));
  await initFleet(join(folder, 'fleet'), 'fleet', [], Date.now());
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_TLS_DIR: join(folder, 'fleet') } });
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});

const run = (...args: string[]) => runCaptured(args, { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress, MOEFLEET_CA: join(folder, 'fleet', 'ca.pem') });

/** Enrols and connects. */
async function enrol(id: string, secret: string) {
  const device = await testDevice(id);
  const calls = new EnrolmentCalls(coordinator.gateway, join(folder, 'fleet'));
  try {
    const { chainPem } = await calls.enrol(secret, device);
    return await coordinator.join({ id, installId: device.installId, channel: testChannel(join(folder, 'fleet'), { key: device.keyPem, certificate: chainPem }) });
  } finally {
    calls.close();
  }
}

test('an id that is free, and one that is no id, are named', async () => {
  expect((await run('device', 'identities')).stdout).toBe('nobody has enrolled; see: moefleet token create --help\n');
  expect(await run('device', 'release', 'ghost')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: device ghost has not enrolled, so its id is free\n' });
  expect(await run('device', 'revoke', 'a b')).toMatchObject({ code: 2, stderr: expect.stringMatching(/device_id: "a b" is not an id/) as string });
});

test('text tells the secret first and then what it is good for', async () => {
  expect((await run('token', 'list')).stdout).toBe('no tokens; make one with: moefleet token create\n');
  const { stdout } = await run('token', 'create');
  expect(stdout).toMatch(/^mft1\.\S+\n\nid +\S+\nstate +good\nused +0 of 1 devices\nuntil +\S+Z\nlabels +-\n$/);
});

test('a token is made, its secret told once, used up by a device, and revoked', async () => {
  const made = await run('token', 'create', '--labels', 'class=phone,region=eu', '--uses', '2', '--ttl', '2h', '--why', 'pilot', '--json');
  expect({ code: made.code, stderr: made.stderr }).toEqual({ code: 0, stderr: '' });
  const { secret, token } = JSON.parse(made.stdout) as { secret: string; token: { id: string } };
  expect(secret).toMatch(/^mft1\./);
  expect(token).toMatchObject({ uses: 2, used: 0, labels: { class: 'phone', region: 'eu' }, why: 'pilot', expiresMs: expect.any(Number) as number });
  await enrol('tablet-1', secret);
  const listed = await run('token', 'list');
  expect(listed.stdout).toMatch(new RegExp(`^ID +USED +STATE +UNTIL +LABELS +WHY\\n${token.id} +1 of 2 +good +\\S+Z +class=phone,region=eu +pilot\\n`));
  expect(listed.stdout).not.toContain(secret);
  expect((await run('devices', 'show', 'tablet-1')).stdout).toMatch(/^set by operators +class=phone,region=eu$/m);
  expect((await run('token', 'revoke', token.id, '--why', 'was on a slide')).stdout).toMatch(/^state +revoked$/m);
  await expect(enrol('phone-2', secret)).rejects.toMatchObject({ details: expect.stringMatching(/revoked.*was on a slide/) as string });
  expect(JSON.parse((await run('token', 'list', '--json')).stdout)).toMatchObject({ tokens: [{ id: token.id, used: 1, revokedMs: expect.any(Number) as number }, { why: '' }] });
});

test.each<[string[], RegExp]>([
  [['create', '--uses', '0'], /--uses.*'0'.*Write an integer from 1 to 100000/],
  [['create', '--ttl', 'soon'], /--ttl.*'soon'.*such as 90s, 2h or 7d/],
  [['create', '--labels', 'a b=c'], /--labels: "a b=c"/],
])('token %j is bad input', async (args, says) => {
  expect(await run('token', ...args)).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(says) as string });
});

test('a token nobody has made is named with the next step; in plaintext nobody enrols', async () => {
  expect(await run('token', 'revoke', 'ghost')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: enrolment token ghost is not known; list them with: moefleet token list\n' });
  const plain = await startCoordinator(redis.url);
  try {
    expect(await runCaptured(['token', 'create', '--operator', plain.addresses().operatorAddress])).toMatchObject({ code: 1, stderr: expect.stringMatching(/serves plaintext, where nobody enrols; make a fleet with `moefleet fleet init`/) as string });
  } finally {
    await plain.close();
  }
});

test('a device is revoked, which cuts its stream, let in again, and its id given free', async () => {
  const { secret } = JSON.parse((await run('token', 'create', '--json')).stdout) as { secret: string };
  const agent = await enrol('phone-1', secret);
  expect((await run('device', 'identities')).stdout).toMatch(/^ID +INSTALLATION +KEY +CERTIFICATE UNTIL +STATE\nphone-1 +install-phone-1 +[0-9a-f]{16} +\S+Z +enrolled\n/);
  const revoked = await run('device', 'revoke', 'phone-1', '--why', 'lost on a train');
  expect(revoked).toMatchObject({ code: 0, stderr: '', stdout: expect.stringMatching(/^phone-1 .* revoked \(lost on a train\)$/m) as string });
  await until('its stream is cut', () => agent.ended, 10_000, 10);
  expect((await run('devices')).stdout).toMatch(/^phone-1 +no REVOKED/m);
  expect(JSON.parse((await run('device', 'unrevoke', 'phone-1', '--json')).stdout)).toMatchObject({ identity: { deviceId: 'phone-1', revokedMs: 0, installId: 'install-phone-1' } });
  expect((await run('device', 'release', 'phone-1', '--why', 'new SD card')).stdout).toMatch(/^phone-1 .* released$/m);
  expect((await run('device', 'clear-clone', 'phone-1')).code).toBe(0);
  expect((await run('device', 'remove', 'phone-1', '--why', 'scrapped')).stdout).toMatch(/^phone-1 .* released$/m);
  expect((await run('devices', '--json')).stdout).not.toContain('phone-1');
  expect(await run('device', 'remove', 'phone-1')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: device phone-1 is not known; see the list of devices\n' });
  expect((await run('audit', '--device', 'phone-1')).stdout).toMatch(/revoke device phone-1\n +why +lost on a train/);
});
