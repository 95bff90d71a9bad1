import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ChangeConfigRequest, type ConnectResponse, DeviceSpec, ModelManifest, ModelStoreServiceClient, StagedRollout_State as State, Staging } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { MODEL_HASH, TestAgent, testInfo } from '../testing/test-agent';
import { askRollouts, change, startCoordinator, type TestCoordinator, testChannel } from '../testing/test-coordinator';

const OTHER_HASH = 'cd'.repeat(32);
let redis: TestRedis;
let folder: string;
let coordinator: TestCoordinator;
let manifestSha256: string;
const agents: TestAgent[] = [];

beforeAll(async () => {
  redis = await startRedis();
  folder = mkdtempSync(join(tmpdir(), 'moefleet-model-change-'));
});
afterAll(async () => {
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(async () => {
  coordinator = await startCoordinator(redis.url, { rolloutLockMs: 2000, env: { MOEFLEET_ARTIFACT_DIR: folder } });
  manifestSha256 = await store('other');
});
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  await coordinator.close();
});

async function store(name: string): Promise<string> {
  const sha256 = (data: Buffer) => createHash('sha256').update(data).digest();
  const data = Buffer.from('all of a model');
  const manifest = Buffer.from(ModelManifest.encode({ bytes: BigInt(data.length), sha256: sha256(data), modelHash: OTHER_HASH, chunks: [{ bytes: data.length, sha256: sha256(data) }] }).finish());
  const { credentials, options } = testChannel(null);
  const client = new ModelStoreServiceClient(coordinator.addresses().operatorAddress, credentials, options);
  await new Promise((resolve, reject) => {
    const call = client.putBlobs((error, answer) => (error ? reject(error) : resolve(answer)));
    for (const blob of [data, manifest]) call.write({ sha256: sha256(blob), data: blob });
    call.end();
  });
  await new Promise((resolve, reject) => client.putModel({ name, manifestSha256: sha256(manifest).toString('hex') }, (error, answer) => (error ? reject(error) : resolve(answer))));
  client.close();
  return sha256(manifest).toString('hex');
}

/** A device that runs the model its spec names, its own where it names none, and tells so before it says that it has applied it. */
async function device(id: string): Promise<TestAgent> {
  const agent = await TestAgent.join(coordinator.gateway, { id, onDesired: 'ignore' });
  agents.push(agent);
  agent.stream.on('data', ({ body }: ConnectResponse) => {
    if (body?.$case !== 'desired') return;
    const { model } = DeviceSpec.decode(body.value.spec);
    agent.send({ $case: 'info', value: testInfo({ id, modelHash: model ? OTHER_HASH : MODEL_HASH }) });
    agent.apply(body.value);
  });
  await until(`${id} is known`, async () => (await coordinator.registry.devices.read(id))?.info, 5000, 5);
  return agent;
}

const setModel = (over: { name?: string; quietHours?: string; bytesPerSecond?: bigint } = {}) => ({ $case: 'setModel' as const, value: { name: 'other', quietHours: '', bytesPerSecond: undefined, ...over } });
const all = (what: ChangeConfigRequest['change']) => ChangeConfigRequest.fromPartial({ target: { kind: { $case: 'all', value: true } }, change: what });

test('under another model λ is 0, for a reason that is told, and back under the first it is what it was', async () => {
  const agent = await device('a');
  await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.25, topJ: 1 } } });
  const running = (lambda: number | undefined, model: string | undefined) => until(`λ ${lambda} with ${model}`, () => {
    const spec = agent.specs.at(-1);
    return spec && spec.lambda === lambda && spec.model?.name === model;
  }, 10_000, 10);
  await running(0.25, undefined);
  await change(coordinator.operator, { change: setModel({ bytesPerSecond: 2_000_000n, quietHours: '08:00-18:00' }) });
  await running(undefined, 'other');
  expect(agent.specs.at(-1)!.model).toEqual({ name: 'other', manifestSha256, bytes: 14n, bytesPerSecond: 2_000_000n, quietHours: '08:00-18:00' });
  // What was sent before the device had told of its new model was bound to the first.
  expect(agent.specs.filter(({ model, lambda, modelHash }) => model && lambda === 0.25 && modelHash !== MODEL_HASH)).toEqual([]);
  const { device: shown } = await new Promise<{ device: { sources: { field: string; detail: string }[] } | undefined }>((resolve, reject) => coordinator.operator.getDevice({ deviceId: 'a' }, (error, answer) => (error ? reject(error) : resolve(answer))));
  expect(shown!.sources.find(({ field }) => field === 'lambda')!.detail).toBe('the fleet pin was set for another model');
  await change(coordinator.operator, { change: { $case: 'clearModel', value: {} } });
  await running(0.25, undefined);
  expect(agent.specs.at(-1)).toMatchObject({ topJ: 1, modelHash: MODEL_HASH });
});

test('a rollout of a model waits a day for its devices, goes on stage by stage, and reaches those that join afterwards', async () => {
  const fleet = await Promise.all(['a', 'b'].map(device));
  const plan = await askRollouts(coordinator, 'planRollout', { change: all(setModel()), staging: Staging.fromPartial({ stages: '1,100%' }) });
  expect(plan.what).toBe(`model other (${manifestSha256.slice(0, 12)}) on all devices`);
  expect(plan.devices.map(({ before, after }) => [before, after])).toEqual([1, 2].map(() => ['as set up', `other (${manifestSha256.slice(0, 12)})`]));
  const { rollout } = await askRollouts(coordinator, 'startRollout', { change: all(setModel()), staging: Staging.fromPartial({ stages: '1,100%', gate: 'errors==0' }) });
  expect((await coordinator.registry.stagedRollouts.read(rollout!.id))!.deadlineMs).toBe(86_400_000);
  await until('it is done', async () => (await askRollouts(coordinator, 'getStagedRollout', { rolloutId: rollout!.id })).rollout?.state === State.STATE_DONE, 20_000, 50);
  expect(fleet.map((agent) => agent.specs.at(-1)?.model?.name)).toEqual(['other', 'other']);
  const late = await device('late');
  await until('the newcomer is asked to run it', () => late.specs.at(-1)?.model?.name === 'other', 10_000, 20);
});

test('of group and device the device wins, and a name that is taken from the store later stays what it was', async () => {
  const agent = await device('a');
  await store('own');
  await change(coordinator.operator, { target: { kind: { $case: 'deviceId', value: 'a' } }, change: setModel({ name: 'own' }) });
  await change(coordinator.operator, { change: setModel() });
  expect(agent.specs.at(-1)!.model!.name).toBe('own');
});

test.each(['perplexityLoss<1%', 'crossEntropyLoss<0.01', 'swapRate<1%', 'missRate<=baseline'])('the gate %s says nothing of another model, and is refused by name', async (gate) => {
  await device('a');
  await expect(askRollouts(coordinator, 'planRollout', { change: all(setModel()), staging: Staging.fromPartial({ gate }) })).rejects.toMatchObject({ details: expect.stringMatching(/staging\.gate: ".*" is not a gate that a change of model can be judged by; use errors==0, perplexityRise/) });
});

test.each<[string, Parameters<typeof setModel>[0], RegExp]>([
  ['a model that is not there', { name: 'nobody' }, /there is no model nobody in .*; see moefleet model list/],
  ['quiet hours that are none', { quietHours: '8-18' }, /quiet_hours: "8-18" is not a span of the day such as 08:00-18:00/],
  ['a whole day of quiet', { quietHours: '08:00-08:00' }, /quiet_hours/],
  ['a rate at which nothing arrives', { bytesPerSecond: 10n }, /bytes_per_second: 10 is not a number of bytes from 8192/],
])('%s is refused by name', async (_, over, why) => {
  await device('a');
  await expect(change(coordinator.operator, { change: setModel(over) })).rejects.toMatchObject({ details: expect.stringMatching(why) });
});

test('a pin that Redis holds damaged is left out', async () => {
  const agent = await device('a');
  await change(coordinator.operator, { change: setModel() });
  const { link } = coordinator.registry;
  const key = `${coordinator.prefix}:{pins}`;
  await link.run(key, (client) => client.hset(key, 'model|fleet', JSON.stringify({ order: 1, name: 'x', manifestSha256: randomBytes(4).toString('hex'), bytes: 1, quietHours: '' })));
  const again = await device('b');
  await until('b has settled', async () => (await coordinator.registry.devices.read('b'))?.info, 5000, 10);
  expect([agent.specs.at(-1)!.model?.name, again.specs.at(-1)?.model]).toEqual(['other', undefined]);
});
