/** `moefleet config explain` against a real coordinator: which layer won, which did not and why, until when. */
import { type TestCoordinator, startCoordinator } from '../../../../coordinator/src/testing/test-coordinator';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCaptured } from '../testing/run-captured';

let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url);
  await pins();
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
});

const run = (...args: string[]) => runCaptured(args, { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });

async function pins(): Promise<void> {
  await coordinator.join({ id: 'phone-1', labels: { class: 'phone' } });
  for (const args of [['0.1', '--all', '--why', 'a first guess'], ['0.2', '--selector', 'class=phone'], ['0.3', '--device', 'phone-1', '--top-j', '1', '--for', '2h', '--why', 'trial']]) {
    expect((await run('lambda', 'set', ...args)).code).toBe(0);
  }
}

test('names for each value the layer that gave it, when it ends, and the layers it won over', async () => {
  const { code, stdout, stderr } = await run('config', 'explain', 'phone-1');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/^VALUE +DESIRED +IN FORCE +FROM +CLAMPED BY THE DEVICE\n/);
  expect(stdout).toMatch(/^lambda +0\.3 +- +device pin \(ends in 1h 59m\): trial$/m);
  expect(stdout).toMatch(/^top_j +1 +- +device pin/m);
  expect(stdout).toMatch(/^eviction +- +- +default/m);
  expect(stdout).toMatch(/^VALUE +OVERRIDDEN +IT SAYS +WHY NOT\nlambda +group pin: class=phone +\{.*"lambda":0\.2.*\} +the device pin wins over it\nlambda +fleet pin: a first guess +\{.*"lambda":0\.1/m);
});

test('says the same as JSON, with every field present', async () => {
  const { device, fields } = JSON.parse((await run('config', 'explain', 'phone-1', '--json')).stdout) as { device: string; fields: Record<string, unknown>[] };
  expect(device).toBe('phone-1');
  expect(fields.map(({ field }) => field)).toEqual(['lambda', 'top_j', 'routing', 'cache_bytes', 'eviction', 'trace_ratio', 'router_sampling', 'agent', 'model']);
  expect(fields[0]).toMatchObject({
    desired: 0.3, inForce: null, layer: 'DEVICE_PIN', detail: 'trial', expiresMs: expect.any(Number) as number, adjustment: null,
    overridden: [{ layer: 'GROUP_PIN', detail: 'class=phone', value: { lambda: 0.2 }, expiresMs: null }, { layer: 'FLEET_PIN', value: { lambda: 0.1 }, why: 'the device pin wins over it' }],
  });
  expect(fields[4]).toEqual({ field: 'eviction', desired: null, inForce: null, layer: 'DEFAULT', detail: '', expiresMs: null, overridden: [], adjustment: null });
});

test('devices shows when a pin ends too', async () => {
  expect((await run('devices')).stdout).toMatch(/^phone-1 +yes +0\.3 > - \(ends in 1h 59m\)/m);
  expect((await run('devices', 'show', 'phone-1')).stdout).toMatch(/^lambda +0\.3 +- +device pin \(ends in 1h 59m\): trial$/m);
  const shown = JSON.parse((await run('devices', 'show', 'phone-1', '--json')).stdout) as { device: { sources: { field: string; expiresMs: number | null }[] } };
  expect(shown.device.sources.find(({ field }) => field === 'lambda')!.expiresMs).toBeGreaterThan(Date.now());
});

test('a device nobody has seen, and none at all, are named with the next step', async () => {
  expect(await run('config', 'explain', 'ghost')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: no device "ghost"; list them with: moefleet devices\n' });
  expect(await run('config', 'explain', 'a b')).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(/device_id: "a b" is not an id/) as string });
  expect(await run('config', 'explain')).toMatchObject({ code: 2, stderr: expect.stringMatching(/missing required argument 'device'; see --help/) as string });
});

test('the kill switch wins over every pin, and says why it was thrown', async () => {
  expect((await run('lambda', 'off', '--why', 'answers look wrong')).code).toBe(0);
  expect((await run('config', 'explain', 'phone-1')).stdout).toMatch(/^lambda +0 +- +kill switch: answers look wrong$[^]*^lambda +device pin \(ends in 1h 59m\): trial +\{.*\} +the kill switch wins over it$/m);
});
