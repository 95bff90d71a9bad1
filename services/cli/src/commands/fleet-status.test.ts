/** `moefleet fleet status`, `coordinators` and `devices history` against a real coordinator. */
import { LayerCounters } from '@moefleet/proto';
import { type TestCoordinator, startCoordinator } from '../../../../coordinator/src/testing/test-coordinator';
import { until } from '../../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCaptured } from '../testing/run-captured';

let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url);
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
});

const run = (...args: string[]) => runCaptured(args, { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });

async function fleet(): Promise<void> {
  const phone = await coordinator.join({ id: 'phone-1', labels: { class: 'phone' } });
  const away = await coordinator.join({ id: 'phone-2', labels: { class: 'phone' } });
  await away.leave();
  await coordinator.join({ id: 'stuck', onDesired: 'ignore' });
  phone.telemetry({ decodeTokens: 100n, requests: 2n, requestsFailed: 1n, flashBytes: 4096n, layers: [LayerCounters.fromPartial({ layer: 0, hits: 30n, misses: 10n, swaps: 4n, events: 10n })] });
  await until('it is counted', async () => (await coordinator.registry.telemetry.sums()).all.decodeTokens === 100n, 10_000, 20);
  await run('lambda', 'set', '0.2', '--all', '--timeout', '0.5');
}

test('an empty fleet has figures too; a device nobody has seen is named with the next step', async () => {
  expect((await run('fleet', 'status')).stdout).toMatch(/^devices +0 online, 0 offline, 0 drifting$/m);
  expect(await run('devices', 'history', 'ghost')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: no device "ghost"; list them with: moefleet devices\n' });
});

test('tells who is there, what was counted by class and model, and which coordinators serve', async () => {
  await fleet();
  const { code, stdout, stderr } = await run('fleet', 'status');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/^devices +2 online, 1 offline, 2 drifting$/m);
  expect(stdout).toMatch(/^frames +1 counted, 0 duplicate, 0 refused, 0 shed; 1 boots$/m);
  expect(stdout).toMatch(new RegExp(`^redis +up, ${redis.url}$`, 'm'));
  expect(stdout).toMatch(new RegExp(`^coordinator-a +\\S+ +${coordinator.gateway} +${coordinator.addresses().operatorAddress} +\\d +0 +\\d+ s ago +up$`, 'm'));
  expect(stdout).toMatch(/^all +100 +0 +30 +10 +25\.0% +4 +4\.00 KiB +2 +1$/m);
  expect(stdout).toMatch(/^class phone +100 /m);
});

test('says the same as JSON, with null for a rate of nothing', async () => {
  const status = JSON.parse((await run('fleet', 'status', '--json')).stdout) as Record<string, unknown>;
  expect((await run('devices', 'history', 'stuck')).stdout).toBe('stuck has counted nothing in the last ten minutes; see: moefleet devices show stuck\n');
  expect(status).toMatchObject({
    devicesOnline: 2, devicesOffline: 1, devicesDrifting: 2, devicesHeld: 0, redisUrl: redis.url,
    totals: { decodeTokens: 100, hits: 30, misses: 10, requestsFailed: 1 }, frames: { counted: 1, shed: 0 }, coordinators: [{ coordinatorId: 'coordinator-a' }],
  });
  // Nothing, until the ten seconds are over in which it was counted.
  expect([null, 0.25]).toContain(status['missRate']);
});

test('a coordinator that is not there, and an address that is none, are named with the next step', async () => {
  expect(await runCaptured(['fleet', 'status', '--operator', '127.0.0.1:1'])).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/cannot reach the coordinator at 127\.0\.0\.1:1; start one with `moefleet coordinator run`/) as string });
  expect(await runCaptured(['fleet', 'status', '--operator', 'nowhere'])).toMatchObject({ code: 2, stderr: expect.stringMatching(/--operator: "nowhere".*127\.0\.0\.1:7401/) as string });
});
