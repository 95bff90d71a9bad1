/** `moefleet label set` and `remove` against a real coordinator. */
import { type TestCoordinator, startCoordinator } from '../../../../coordinator/src/testing/test-coordinator';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCaptured } from '../testing/run-captured';

let redis: TestRedis;
let coordinator: TestCoordinator;

beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url);
  await coordinator.join({ id: 'phone-1', labels: { class: 'phone', site: 'lab' } });
  await coordinator.join({ id: 'jetson-1', labels: { class: 'jetson' } });
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
});

const run = (...args: string[]) => runCaptured(args, { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });

test('sets labels on one device, shows what is in force and what of it was set here, and takes them away again', async () => {
  const { code, stdout, stderr } = await run('label', 'set', 'phone-1', 'site=berlin', 'tier=prod', '--why', 'moved');
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/^DEVICE +LABELS +OF THESE SET HERE\nphone-1 +class=phone,site=berlin,tier=prod +site=berlin,tier=prod\n$/);
  expect((await run('devices', 'show', 'phone-1')).stdout).toMatch(/^reported, without effect +site=lab$/m);
  expect((await run('label', 'set', 'phone-1', 'tier=prod')).stdout).toBe('nothing to change on 1 device\n');
  expect((await run('label', 'remove', 'phone-1', 'site', 'tier')).stdout).toMatch(/^phone-1 +class=phone,site=lab +-$/m);
  expect((await run('audit', '--device', 'phone-1')).stdout).toMatch(/labels site=berlin tier=prod on 1 devices\n +why +moved/);
});

test('sets them on all that a selector matches, as JSON', async () => {
  const { code, stdout } = await run('label', 'set', '--selector', 'class in (phone,jetson)', 'moefleet.io/ring=canary', '--json');
  expect(code).toBe(0);
  const answer = JSON.parse(stdout) as { matched: number; devices: { deviceId: string }[] };
  expect(answer.matched).toBe(2);
  expect(answer.devices.sort((a, b) => (a.deviceId < b.deviceId ? -1 : 1))).toEqual([
    { deviceId: 'jetson-1', labels: { class: 'jetson', 'moefleet.io/ring': 'canary' }, operatorLabels: { 'moefleet.io/ring': 'canary' } },
    { deviceId: 'phone-1', labels: { class: 'phone', site: 'lab', 'moefleet.io/ring': 'canary' }, operatorLabels: { 'moefleet.io/ring': 'canary' } },
  ]);
  expect((await run('label', 'remove', '--all', 'moefleet.io/ring')).stdout.split('\n')).toHaveLength(4);
  expect(await run('label', 'set', '--selector', 'class=toaster', 'x=y')).toEqual({ code: 0, stdout: 'no device matches\n', stderr: '' });
});

test.each<[string, string[], RegExp]>([
  ['a label without a value', ['set', 'phone-1', 'berlin'], /"berlin" is no label; write it as site=berlin/],
  ['a key that is none', ['set', 'phone-1', 'a b=c'], /"a b=c" is no label/],
  ['a value that is none', ['set', 'phone-1', 'site=two words'], /"site=two words": a value has at most 63 letters/],
  ['no label at all', ['set', 'phone-1'], /no label given; write it as site=berlin/],
  ['no key at all', ['remove', 'phone-1'], /no label key given; see the labels of a device with: moefleet devices show ID/],
  ['no target', ['set'], /no target given; name the devices with --all, --device ID or --selector/],
  ['two targets', ['set', '--all', '--device', 'phone-1', 'x=y'], /--all and --device exclude each other/],
])('%s is bad input, and nothing is changed', async (_, args, says) => {
  expect(await run('label', ...args)).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(says) as string });
  expect((await coordinator.registry.devices.read('phone-1'))!.operatorLabels).toEqual({});
});

test('a device nobody has seen is named with the next step', async () => {
  expect(await run('label', 'set', 'ghost', 'x=y')).toEqual({ code: 1, stdout: '', stderr: 'moefleet: device ghost is not known; see the list of devices\n' });
});
