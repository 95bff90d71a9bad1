/** The agents' side of the coordinator, over real gRPC and a real Redis, with agents that behave and agents that do not. */
import { type ClientDuplexStream, Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { ConnectRequest, EffectiveSpec, RouterWindow, SpecState } from '@moefleet/proto';
import { freePort, until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { connect, type Socket } from 'node:net';
import { noReport, sha256, TestAgent, type TestAgentOptions } from '../testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
const agents: TestAgent[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => { coordinator = await startCoordinator(redis.url, { leaseTtlMs: 600, helloTimeoutMs: 300 }); });
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  await coordinator.close();
});

async function join(options: TestAgentOptions, where = coordinator): Promise<TestAgent> {
  const agent = await TestAgent.join(where.gateway, options);
  agents.push(agent);
  return agent;
}

function stranger(options: TestAgentOptions = { id: 'stranger' }): TestAgent {
  const agent = new TestAgent(coordinator.gateway, options);
  agents.push(agent);
  return agent;
}

async function endOf(agent: TestAgent): Promise<ServiceError> {
  return await until('the stream has ended', () => agent.ended, 5000, 5) as ServiceError;
}

const read = async (id: string) => (await coordinator.registry.devices.read(id))!;
/** The session has looked at what the device shall run, and found nothing to do. */
const settled = (id: string) => until(`${id} has settled`, () => {
  const key = `${coordinator.prefix}:{dev:${id}}:state`;
  return coordinator.registry.link.run(key, (client) => client.hget(key, 'settledGeneration'));
}, 5000, 5);
const pin = (lambda: number) => coordinator.registry.pins.set({ t: 'fleet' }, 'lambda', { why: '', modelHashes: [], lambda, topJ: null });
const setLambda = (lambda: number) => ({ change: { $case: 'setLambda' as const, value: { lambda, topJ: undefined } } });

/** A stream that sends whatever bytes it is given. */
function rawStream(): { stream: ClientDuplexStream<Buffer, Buffer>; end: Promise<ServiceError> } {
  const client = new Client(coordinator.gateway, credentials.createInsecure(), { 'grpc.max_send_message_length': -1 });
  const same = (bytes: Buffer) => bytes;
  const stream = client.makeBidiStreamRequest('/moefleet.v1.AgentService/Connect', same, same, new Metadata());
  const end = new Promise<ServiceError>((resolve) => { stream.on('error', (error: ServiceError) => { resolve(error); client.close(); }); });
  stream.on('data', () => {});
  return { stream, end };
}

function helloBytes(id: string): Buffer {
  return Buffer.from(ConnectRequest.encode({ body: { $case: 'hello', value: { deviceId: id, installId: 'i', bootId: 'b', protocolVersion: 1, info: undefined, reported: undefined } } }).finish());
}

test('welcomes an agent, keeps what it says, and marks it offline when it leaves', async () => {
  const agent = await join({ id: 'd', labels: { class: 'phone' } });
  expect(agent.welcome).toEqual({ coordinatorId: 'coordinator-a', protocolVersion: 1, telemetryIntervalMs: 1000, expertUseIntervalMs: 300_000, windowChunkBytes: 65536 });
  await until('its info is kept', async () => (await read('d')).info, 5000, 5);
  expect(await read('d')).toMatchObject({ lease: { hostname: 'host-d' }, info: { labels: { class: 'phone' } } });
  await agent.leave();
  await until('it is offline', async () => (await read('d')).lease === null, 5000, 5);
});

test('a newcomer gets the fleet\'s pin for the models it is known to hold for; without a pin it gets nothing', async () => {
  const first = await join({ id: 'd1' });
  await settled('d1');
  await pin(0.25);
  const second = await join({ id: 'd2' });
  await until('the pin has arrived', () => second.specs.length, 5000, 5);
  expect(second.specs[0]).toMatchObject({ lambda: 0.25, modelHash: second.info.model!.hash });
  expect(first.desired).toEqual([]);
});

test('sends desired once, and nothing more after it has been applied', async () => {
  await pin(0.25);
  const agent = await join({ id: 'd' });
  await until('it is settled', async () => (await read('d')).settledGeneration === 1n, 5000, 5);
  agent.report({});
  agent.telemetry();
  await until('the report has been taken in', async () => (await read('d')).telemetry, 5000, 5);
  await new Promise((resolve) => setTimeout(resolve, 700));
  expect(agent.desired).toHaveLength(1);
  expect((await read('d')).reported?.appliedHash).toEqual(sha256(agent.desired[0]!.spec));
});

test('does not send again to an agent that comes back with what it shall run', async () => {
  await pin(0.25);
  const agent = await join({ id: 'd' });
  await until('it is settled', async () => (await read('d')).settledGeneration === 1n, 5000, 5);
  await agent.leave();
  const again = await join({ id: 'd', bootId: 'boot-2', reported: agent.reported });
  await until('its boot is known', async () => (await read('d')).bootId === 'boot-2', 5000, 5);
  await new Promise((resolve) => setTimeout(resolve, 400));
  expect(again.desired).toEqual([]);
});

test('a refused spec is not sent again until desired changes', async () => {
  await pin(0.25);
  const agent = await join({ id: 'd', onDesired: 'refuse' });
  await until('it has refused', async () => (await read('d')).reported?.state === SpecState.SPEC_STATE_FAILED, 5000, 5);
  agent.report({});
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(agent.desired).toHaveLength(1);
  await change(coordinator.operator, setLambda(0.5));
  expect(agent.specs.map((spec) => spec.lambda)).toEqual([0.25, 0.5]);
});

test('a wake-up that was lost costs time, not correctness', async () => {
  const agent = await join({ id: 'd' });
  await settled('d');
  const spec = Buffer.from([0x09, 0, 0, 0, 0, 0, 0, 0xd0, 0x3f]);
  await coordinator.registry.devices.writeDesired('d', 0n, 0n, spec, 'written behind everyone\'s back');
  await until('it has arrived all the same', () => agent.desired.length, 5000, 5);
  expect(agent.specs[0]!.lambda).toBe(0.25);
});

test('writes above a generation that only the device knows where it runs nothing, and tells the agent why', async () => {
  await pin(0.25);
  const agent = await join({ id: 'd', reported: { ...noReport(), state: SpecState.SPEC_STATE_FAILED, generation: 41n } });
  await until('a spec has arrived', () => agent.desired.length, 5000, 5);
  expect(agent.desired[0]!.generation).toBe(42n);
  expect(agent.desired[0]!.origin).toContain('generation 41');
});

test('a gap in the telemetry makes it ask for the full state; frames in order do not', async () => {
  const agent = await join({ id: 'd' });
  for (const sequence of [5n, 6n, 7n]) agent.telemetry({ sequence });
  await until('frames are kept', async () => (await read('d')).telemetry?.sequence === 7n, 5000, 5);
  expect(agent.fullStateAsked).toBe(0);
  agent.telemetry({ sequence: 9n });
  await until('it has asked', () => agent.fullStateAsked === 1, 5000, 5);
  await until('the newest is kept', async () => (await read('d')).telemetry?.sequence === 9n, 5000, 5);
});

test('router windows are kept', async () => {
  const agent = await join({ id: 'd' });
  agent.send({ $case: 'routerWindow', value: RouterWindow.fromPartial({ windowId: 'w1', tokens: 1, layers: 1, experts: 4, compression: 1, data: Buffer.alloc(12) }) });
  await until('it is there', async () => (await coordinator.registry.windows.list('d')).length === 1, 5000, 5);
});

test('the same installation takes its device over from a stream that has died half-open', async () => {
  const before = await join({ id: 'd' });
  const after = await join({ id: 'd' });
  expect((await endOf(before)).code).toBe(status.ABORTED);
  await pin(0.25);
  await change(coordinator.operator, setLambda(0.3));
  expect(after.specs.at(-1)!.lambda).toBe(0.3);
  expect((await read('d')).lease).not.toBeNull();
});

test('another installation with the same id is turned away, and told by whom and what to do', async () => {
  const holder = await join({ id: 'd', hostname: 'kitchen' });
  const other = stranger({ id: 'd', installId: 'another' });
  other.hello();
  const error = await endOf(other);
  expect(error.code).toBe(status.ALREADY_EXISTS);
  expect(error.details).toMatch(/"d".*kitchen.*--id/);
  expect(holder.ended).toBeNull();
  await holder.leave();
  await until('the id is free', async () => (await read('d')).lease === null, 5000, 5);
  await join({ id: 'd', installId: 'another' });
});

test.each<[string, (agent: TestAgent) => void, RegExp]>([
  ['a first message that is no hello', (agent) => agent.telemetry(), /hello, which has to come first/],
  ['a hello too late', () => {}, /within 300 ms/],
  ['a device id with a slash', (agent) => { agent.options.id = '../etc'; agent.hello(); }, /hello\.device_id: "\.\.\/etc"/],
  ['a device id with braces', (agent) => { agent.options.id = '{dev}'; agent.hello(); }, /hello\.device_id/],
  ['a protocol version from the future', (agent) => agent.hello(99), /protocol_version: 99.*upgrade the coordinator/],
  ['a label that is none', (agent) => { agent.options.labels = { 'a b': 'c' }; agent.hello(); }, /info\.labels: "a b"/],
  ['two hellos', (agent) => { agent.hello(); agent.hello(); }, /hello/],
  ['an unknown state', (agent) => { agent.hello(); agent.report({ state: 77 as SpecState }); }, /reported\.state/],
  ['a hash that is no SHA-256', (agent) => { agent.hello(); agent.report({ appliedHash: Buffer.alloc(5) }); }, /applied_hash/],
  ['a generation beyond all bounds', (agent) => { agent.hello(); agent.report({ generation: 2n ** 63n }); }, /reported\.generation: 9223372036854775808/],
  ['a lambda of one layer that is out of range', (agent) => { agent.hello(); agent.report({ effective: EffectiveSpec.fromPartial({ lambdas: [0.1, 7] }) }); }, /effective\.lambdas: 7/],
  ['an effective lambda that is no number', (agent) => { agent.hello(); agent.report({ effective: EffectiveSpec.fromPartial({ lambda: NaN }) }); }, /effective\.lambda: NaN/],
])('%s ends the stream with INVALID_ARGUMENT', async (_, misbehave, message) => {
  const good = await join({ id: 'good' });
  const agent = stranger();
  misbehave(agent);
  const error = await endOf(agent);
  expect(error.code).toBe(status.INVALID_ARGUMENT);
  expect(error.details).toMatch(message);
  expect(good.ended).toBeNull();
});

test.each<[string, Buffer]>([
  ['garbage', Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff])],
  ['an empty message', Buffer.alloc(0)],
  ['a field of an unknown kind', Buffer.from([0x7a, 0x01, 0x00])],
  ['a length that lies', Buffer.from([0x0a, 0x7f, 0x01])],
])('%s on the stream ends that stream alone, before hello and after', async (_, bytes) => {
  const good = await join({ id: 'good' });
  for (const first of [[], [helloBytes('raw')]]) {
    const { stream, end } = rawStream();
    for (const message of [...first, bytes]) stream.write(message);
    expect((await end).code).toBe(status.INVALID_ARGUMENT);
  }
  await change(coordinator.operator, setLambda(0.2));
  expect(good.specs.at(-1)!.lambda).toBe(0.2);
});

test('a message above 1 MiB ends its stream with RESOURCE_EXHAUSTED, the others live on', async () => {
  const good = await join({ id: 'good' });
  const { stream, end } = rawStream();
  stream.write(helloBytes('raw'));
  stream.write(Buffer.alloc(1024 * 1024 + 1));
  expect((await end).code).toBe(status.RESOURCE_EXHAUSTED);
  await until('its lease is free', async () => (await coordinator.registry.devices.read('raw'))?.lease === null, 5000, 5);
  await change(coordinator.operator, setLambda(0.2));
  expect(good.ended).toBeNull();
});

test('bytes that are not even HTTP/2 do no harm', async () => {
  const [host, port] = coordinator.gateway.split(':');
  const socket: Socket = await new Promise((resolve) => { const made = connect(Number(port), host, () => resolve(made)); });
  socket.on('error', () => {}).resume();
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.write('GET / HTTP/1.1\r\nhost: anything at all\r\n\r\n');
  await closed;
  await join({ id: 'd' });
});

test('streams end with UNAVAILABLE and a time to wait when the coordinator stops, and leases hold until the devices are back', async () => {
  const agent = await join({ id: 'd' });
  const { prefix } = coordinator;
  await coordinator.lifecycle.stop();
  const error = await endOf(agent);
  expect(error.code).toBe(status.UNAVAILABLE);
  expect(Number(error.metadata.get('retry-after-ms')[0])).toBeGreaterThanOrEqual(200);
  coordinator = await startCoordinator(redis.url, { prefix, id: 'coordinator-b' });
  expect((await read('d')).lease).toMatchObject({ coordinatorId: 'coordinator-a' });
  await join({ id: 'd' });
  expect((await read('d')).lease).toMatchObject({ coordinatorId: 'coordinator-b' });
});

describe('with two coordinators', () => {
  let second: TestCoordinator;
  beforeEach(async () => { second = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b', leaseTtlMs: 600 }); });
  afterEach(() => second.close());

  test('an agent that moves over ends its old stream', async () => {
    const before = await join({ id: 'd' });
    await join({ id: 'd' }, second);
    expect((await endOf(before)).code).toBe(status.ABORTED);
    expect((await read('d')).lease?.coordinatorId).toBe('coordinator-b');
  });

  test('another installation is turned away by either', async () => {
    await join({ id: 'd' });
    await expect(join({ id: 'd', installId: 'another' }, second)).rejects.toMatchObject({ code: status.ALREADY_EXISTS });
  });

  test('a change made at one reaches agents of the other at once', async () => {
    const agent = await join({ id: 'd' }, second);
    const last = (await change(coordinator.operator, setLambda(0.4))).at(-1)!;
    expect(last.devices).toMatchObject([{ deviceId: 'd', state: 3 }]);
    expect(agent.specs.at(-1)!.lambda).toBe(0.4);
  });
});

test('a port that is taken is told at start', async () => {
  const [, port] = coordinator.gateway.split(':');
  await expect(startCoordinator(redis.url, { env: { MOEFLEET_GATEWAY_LISTEN: `127.0.0.1:${port}` } })).rejects.toThrow(`cannot listen on 127.0.0.1:${port}`);
  const httpPort = await freePort();
  const other = await startCoordinator(redis.url, { env: { MOEFLEET_HTTP_LISTEN: `127.0.0.1:${httpPort}` } });
  expect(await (await fetch(`${other.http}/healthz`)).json()).toEqual({ status: 'ok', redis: 'up' });
  await other.close();
});

describe('when Redis goes away in the middle', () => {
  test('agents keep their streams, what they said meanwhile is not lost, telemetry is shed and counted', async () => {
    const agent = await join({ id: 'd' });
    await change(coordinator.operator, setLambda(0.25));
    await redis.stop();
    await until('it is noticed', () => !coordinator.registry.link.up, 5000, 5);
    agent.telemetry();
    agent.report({ reason: 'said during the outage' });
    await expect(change(coordinator.operator, setLambda(0.5))).rejects.toMatchObject({ code: status.UNAVAILABLE, details: expect.stringMatching(/Redis at .* does not answer.*MOEFLEET_REDIS_URL/) });
    await expect(call(coordinator, 'listDevices', { selector: undefined, pageSize: 0, pageToken: '' })).rejects.toMatchObject({ code: status.UNAVAILABLE });
    await expect(join({ id: 'newcomer' })).rejects.toMatchObject({ code: status.UNAVAILABLE });
    expect(await (await fetch(`${coordinator.http}/healthz`)).json()).toEqual({ status: 'degraded', redis: 'away' });
    expect(await (await fetch(`${coordinator.http}/metrics`)).text()).toMatch(/moefleet_coordinator_redis_up 0[\s\S]*telemetry_frames_total\{outcome="shed"\} 1/);
    expect(agent.ended).toBeNull();
    await redis.start();
    await until('the report has been made up for', async () => (await read('d')).reported?.reason === 'said during the outage', 10_000, 20);
    await until('it is online', async () => (await read('d')).lease, 5000, 20);
    expect((await change(coordinator.operator, setLambda(0.5))).at(-1)!.devices[0]!.state).toBe(3);
    expect(agent.specs.at(-1)!.lambda).toBe(0.5);
  });

  test('what was changed by others meanwhile reaches agents when it is back', async () => {
    const agent = await join({ id: 'd' });
    await settled('d');
    await pin(0.25);
    await redis.stop();
    await until('it is noticed', () => !coordinator.registry.link.up, 5000, 5);
    await redis.start();
    await until('the pin has arrived', () => agent.specs.some((spec) => spec.lambda === 0.25), 10_000, 20);
  });

  test('a Redis that comes back empty is filled again from the agents', async () => {
    const agent = await join({ id: 'd' });
    await change(coordinator.operator, setLambda(0.25));
    const before = agent.desired.at(-1)!.generation;
    await coordinator.registry.link.run('all', (client) => client.flushall());
    await redis.stop();
    await until('it is noticed', () => !coordinator.registry.link.up, 5000, 5);
    await redis.start();
    await until('the device is listed again', async () => (await coordinator.registry.devices.readAll()).some((device) => device.id === 'd' && device.info && device.lease), 10_000, 20);
    const known = () => coordinator.registry.devices.read('d');
    await until('what it reports is known again', async () => (await known())?.reported?.appliedGeneration === before, 5000, 20);
    expect((await known())!.desired.t).toBe('none');
    expect(agent.desired.at(-1)!.generation).toBe(before);
  });
});
