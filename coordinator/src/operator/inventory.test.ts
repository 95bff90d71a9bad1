/** Labels of operators', and the list of devices in pages, over real gRPC. */
import { credentials, type ServiceError, status } from '@grpc/grpc-js';
import { type ChangeLabelsRequest, type ChangeLabelsResponse, InventoryServiceClient } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
let inventory: InventoryServiceClient;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  coordinator = await startCoordinator(redis.url);
  inventory = new InventoryServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
});
afterEach(async () => {
  inventory.close();
  await coordinator.close();
});

const join = (id: string, labels: Record<string, string> = {}) => coordinator.join({ id, labels });

function label(request: Partial<ChangeLabelsRequest>): Promise<ChangeLabelsResponse> {
  const target = { kind: { $case: 'all' as const, value: true } };
  return new Promise((resolve, reject) => inventory.changeLabels({ target, set: {}, remove: [], why: '', ...request }, (error: ServiceError | null, response) => (error ? reject(error) : resolve(response))));
}

const on = (deviceId: string) => ({ kind: { $case: 'deviceId' as const, value: deviceId } });
const where = (expression: string) => ({ kind: { $case: 'selector' as const, value: { matchLabels: {}, expression } } });
const page = (pageSize: number, pageToken = '') => call(coordinator, 'listDevices', { selector: undefined, pageSize, pageToken });

test('a label puts a device into a group, which it then runs, and out of it again', async () => {
  const agent = await join('d', { site: 'lab', 'moefleet.io/ring': 'all' });
  await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.3, topJ: undefined } }, target: where('site=roof') });
  expect(agent.specs).toEqual([]);
  const { devices } = await label({ target: on('d'), set: { site: 'roof' }, why: 'moved' });
  expect(devices).toEqual([{ deviceId: 'd', labels: { site: 'roof' }, operatorLabels: { site: 'roof' } }]);
  await until('it runs the group\'s value', () => agent.specs.at(-1)?.lambda === 0.3, 5000, 5);
  // A device cannot take the label back, nor claim a reserved one.
  agent.send({ $case: 'info', value: { ...agent.info, labels: { site: 'lab', other: 'x', 'moefleet.io/ring': 'all' } } });
  await until('it is told', async () => (await coordinator.registry.devices.read('d'))!.labels['other'] === 'x', 5000, 5);
  expect((await call(coordinator, 'getDevice', { deviceId: 'd' })).device).toMatchObject({ labels: { site: 'roof', other: 'x' }, operatorLabels: { site: 'roof' }, info: { labels: { site: 'lab' } } });
  await label({ target: where('site=roof'), remove: ['site'] });
  await until('it is out of the group', () => agent.specs.at(-1)?.lambda === undefined, 5000, 5);
  expect((await coordinator.registry.audit.latest(0, 9, ({ what }) => what.startsWith('labels'))).entries.map(({ what, why, before }) => [what, why, before]))
    .toEqual([['labels site=roof on 1 devices', 'moved', '{"d":{}}'], ['labels site- on 1 devices', '', '{"d":{"site":"roof"}}']]);
});

test('reserved keys and the selector\'s group are an operator\'s to set', async () => {
  for (const id of ['a', 'b']) await join(id, { 'moefleet.io/ring': 'canary' });
  expect(await label({ target: on('a'), set: { 'moefleet.io/ring': 'canary' } })).toMatchObject({ matched: 1 });
  expect(await label({ target: where('moefleet.io/ring=canary'), set: { x: '' } })).toMatchObject({ matched: 1, devices: [{ deviceId: 'a' }] });
  expect(await label({ target: where('moefleet.io/ring=canary'), set: { x: '' } })).toEqual({ matched: 1, devices: [] });
});

test.each<[string, Partial<ChangeLabelsRequest>, RegExp]>([
  ['a key that is none', { set: { 'a b': 'c' } }, /set: "a b" is not a label key/],
  ['a prefix that is no DNS name', { set: { 'A_B/c': 'd' } }, /set: "A_B\/c"/],
  ['a value that is none', { set: { a: 'b c' } }, /set\.a: "b c"/],
  ['a key to remove that is none', { remove: ['/'] }, /remove: "\/"/],
  ['one that is set and removed', { set: { a: 'b' }, remove: ['a'] }, /remove: "a" is not possible beside/],
  ['nothing', {}, /set: "nothing"/],
  ['too many', { set: Object.fromEntries(Array.from({ length: 65 }, (_, at) => [`k${at}`, ''])) }, /set: 65/],
  ['a huge selector', { set: { a: '' }, target: where('k'.repeat(100_000)) }, /at most 4096 characters/],
])('%s is refused by name', async (_, request, says) => {
  await join('d');
  await expect(label(request)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(says) as string });
  expect((await coordinator.registry.devices.read('d'))!.operatorLabels).toEqual({});
});

test('labels add up to a bound, and outlive the device\'s own', async () => {
  await join('d');
  for (const from of [0, 32]) await label({ set: Object.fromEntries(Array.from({ length: 32 }, (_, at) => [`k${from + at}`, 'v'])) });
  await expect(label({ set: { more: 'v' } })).rejects.toMatchObject({ details: expect.stringMatching(/set: "65 labels" is not possible on device d: operators may set up to 64/) as string });
});

test('pages hold every device once, in order, and none of them outgrows a message', async () => {
  const { devices } = coordinator.registry;
  const reason = 'r'.repeat(4000);
  for (let at = 0; at < 1300; at += 1) {
    const id = `d${String(at).padStart(4, '0')}`;
    const answer = await devices.acquireLease(id, { installId: 'i', bootId: 'b', coordinatorId: 'c', hostname: 'h', ttlMs: 60_000 });
    if (answer.t === 'granted') await devices.writeState(answer.lease, { reported: { ...(await import('@moefleet/proto')).Reported.decode(new Uint8Array()), reason } });
  }
  const seen: string[] = [];
  const sizes: number[] = [];
  for (let token = ''; ;) {
    const answer = await page(1000, token);
    sizes.push(answer.devices.length);
    seen.push(...answer.devices.map(({ id }) => id));
    token = answer.nextPageToken;
    if (token === '') break;
  }
  expect(seen).toEqual(await devices.ids());
  expect(sizes.length).toBeGreaterThan(1);
  expect(Math.max(...sizes)).toBeLessThan(1000);
  expect((await page(3)).devices.map(({ id }) => id)).toEqual(['d0000', 'd0001', 'd0002']);
  await expect(page(3, 'no token')).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/page_token: "no token"/) as string });
});
