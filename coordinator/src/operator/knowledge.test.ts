/** What the learner knows of devices: kept, explained, and not trusted when it is read back, over real gRPC and real Redis. */
import { credentials, type ServiceError, status } from '@grpc/grpc-js';
import { DeviceKnowledge, DeviceUse, type ExplainLearnerResponse, KnowledgeServiceClient, QualitySurface } from '@moefleet/proto';
import { Redis } from 'ioredis';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { call, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

const MODEL = 'ab'.repeat(32);
const TEXT = 'cd'.repeat(32);
let redis: TestRedis;
let coordinator: TestCoordinator;
let client: KnowledgeServiceClient;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  coordinator = await startCoordinator(redis.url);
  client = new KnowledgeServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
});
afterEach(async () => {
  client.close();
  await coordinator.close();
});

function ask<Request, Response>(method: (request: Request, done: (error: ServiceError | null, response: Response) => void) => unknown, request: Request): Promise<Response> {
  return new Promise((resolve, reject) => method.call(client, request, (error, response) => (error ? reject(error) : resolve(response))));
}

async function streamed<Message>(stream: AsyncIterable<unknown>): Promise<Message[]> {
  const messages: Message[] = [];
  for await (const message of stream) messages.push(message as Message);
  return messages;
}

const put = (...devices: DeviceKnowledge[]) => ask(client.putKnowledge as never, { devices });
const list = async () => (await ask<object, { devices: DeviceKnowledge[] }>(client.listKnowledge as never, {})).devices;
const explain = (deviceId: string) => ask<object, ExplainLearnerResponse>(client.explainLearner as never, { deviceId });
const of = (deviceId: string) => DeviceKnowledge.fromPartial({
  deviceId, modelHash: MODEL, deviceClass: 'phone', bootId: 'boot', speed: { information: [1, 0, 2], noise: 0.01, windows: 7n, alarms: [0, 0, 0, 0, 0, 0], priorTrust: 1 },
  choice: { boundBy: 'mean budget', textHashes: [TEXT] },
});

test('keeps what a learner knows of each device, and explains one with the surfaces it rests on', async () => {
  for (const id of ['a', 'b']) await coordinator.join({ id });
  await put(of('a'), of('b'));
  expect(await list()).toEqual([of('a'), of('b')]);
  expect((await streamed<{ devices: DeviceKnowledge[] }>(client.streamKnowledge({}))).flatMap(({ devices }) => devices)).toEqual([of('a'), of('b')]);
  const surface = { ...QualitySurface.fromPartial({ domain: 'wiki', tokens: 512 }), modelHash: MODEL, textHash: TEXT };
  await call(coordinator, 'putSurface', { surface });
  expect(await explain('a')).toMatchObject({ device: { id: 'a' }, knowledge: of('a'), surfaces: [surface] });
});

test('streams what devices use of a model\'s experts, of those that have told since, and every device there is', async () => {
  const ids = Array.from({ length: 130 }, (_, i) => `d-${String(i).padStart(3, '0')}`);
  await coordinator.join({ id: 'd-000' });
  for (const id of ids) await coordinator.registry.devices.remember(id);
  for (const [i, deviceId] of ids.entries()) await coordinator.registry.uses.update(deviceId, () => DeviceUse.fromPartial({ deviceId, modelHash: i === 5 ? 'other' : MODEL, timeMs: BigInt(i), experts: 32 }));
  const asked = await streamed<{ uses: DeviceUse[] }>(client.streamUse({ modelHash: MODEL, sinceMs: 3n }));
  expect(asked).toHaveLength(2);
  expect(asked.flatMap(({ uses }) => uses.map(({ deviceId }) => deviceId))).toEqual(ids.filter((_, i) => i >= 3 && i !== 5));
  const learnable = (await streamed<{ devices: { id: string }[] }>(coordinator.learner.streamLearnable({}))).flatMap(({ devices }) => devices);
  expect(learnable).toEqual((await call(coordinator, 'listLearnable', {})).devices);
  expect(learnable.map(({ id }) => id)).toEqual(['d-000']);
});

test('explains a device that no learner has looked at, and none that nobody knows', async () => {
  await coordinator.join({ id: 'a' });
  expect(await explain('a')).toMatchObject({ device: { id: 'a' }, proposal: undefined, knowledge: undefined, surfaces: [] });
  await expect(explain('b')).rejects.toMatchObject({ code: status.NOT_FOUND, details: expect.stringContaining('device b is not known') });
});

test.each<[string, Partial<DeviceKnowledge>, RegExp]>([
  ['no device', { deviceId: '' }, /device_id/], ['no model', { modelHash: 'x' }, /model_hash: "?x/],
  ['figures that are no numbers', { speed: { ...of('a').speed!, information: [Number.NaN, 0, 0] } }, /devices\[a\]\.speed\.information\.0: "?NaN/],
  ['settings without end', { outcomes: new Array(65).fill(DeviceKnowledge.fromPartial({ outcomes: [{}] }).outcomes[0]) }, /65 settings/],
  ['a text that is none', { choice: { ...of('a').choice!, textHashes: ['../x'] } }, /text_hashes\[0\]/],
])('refuses knowledge of %s', async (_, wrong, message) => {
  await coordinator.join({ id: 'a' });
  await expect(put({ ...of('a'), ...wrong })).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(message) });
  expect(await list()).toEqual([]);
});

test('what lies in Redis and is no knowledge of the device is left out, and so is a damaged surface', async () => {
  for (const id of ['a', 'b', 'c']) await coordinator.join({ id });
  await put(of('a'));
  await call(coordinator, 'putSurface', { surface: { ...QualitySurface.fromPartial({}), modelHash: MODEL, textHash: TEXT } });
  const store = new Redis(redis.url);
  await store.set(`${coordinator.prefix}:{dev:b}:knowledge`, Buffer.from([0xff, 0xff, 0xff]));
  await store.set(`${coordinator.prefix}:{dev:c}:knowledge`, Buffer.from(DeviceKnowledge.encode(of('a')).finish()));
  await store.set(`${coordinator.prefix}:{surface:${MODEL}}:${TEXT}`, 'no surface');
  store.disconnect();
  expect((await list()).map(({ deviceId }) => deviceId)).toEqual(['a']);
  expect(await explain('a')).toMatchObject({ knowledge: of('a'), surfaces: [] });
  expect(await explain('c')).toMatchObject({ knowledge: undefined });
});
