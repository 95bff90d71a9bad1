/** Devices as they change, over real gRPC: present first, then what changes, never more than the caller reads. */
import { type ClientReadableStream, credentials, type ServiceError, status } from '@grpc/grpc-js';
import { type Device, InventoryServiceClient, type LabelSelector, SpecState, type WatchDevicesResponse } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';
import { DeviceWatch } from './device-watch';

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

interface Watching { stream: ClientReadableStream<WatchDevicesResponse>; events: NonNullable<WatchDevicesResponse['event']>[]; error: ServiceError | null; of(id: string): Device[] }

async function watch(expression = ''): Promise<Watching> {
  const selector: LabelSelector | undefined = expression ? { matchLabels: {}, expression } : undefined;
  const stream = inventory.watchDevices({ selector });
  const watching: Watching = {
    stream, events: [], error: null,
    of: (id) => watching.events.flatMap((event) => (event.$case === 'device' && event.value.id === id ? [event.value] : [])),
  };
  stream.on('data', ({ event }: WatchDevicesResponse) => { watching.events.push(event!); });
  stream.on('error', (error: ServiceError) => { watching.error = error; });
  await until('the present state is complete', () => watching.error ?? watching.events.some((event) => event.$case === 'present'), 5000, 5);
  return watching;
}

const lambda = (value: number) => ({ change: { $case: 'setLambda' as const, value: { lambda: value, topJ: undefined } }, timeoutMs: 5000 });

test('tells the present state, that it is complete, and then each change of what a device shall run, runs and is', async () => {
  await coordinator.join({ id: 'b' });
  const agent = await coordinator.join({ id: 'a', labels: { class: 'phone' } });
  const { events, of, stream } = await watch();
  expect(events.map((event) => (event.$case === 'device' ? event.value.id : event))).toEqual(['a', 'b', { $case: 'present', value: 2 }]);
  expect(of('a')[0]).toMatchObject({ online: true, drift: false, labels: { class: 'phone' }, telemetry: undefined });
  await change(coordinator.operator, lambda(0.3));
  await until('both run it', () => ['a', 'b'].every((id) => of(id).at(-1)!.reported?.state === SpecState.SPEC_STATE_APPLIED && !of(id).at(-1)!.drift), 5000, 5);
  expect(of('a').at(-1)!.desired!.lambda).toBe(0.3);
  agent.send({ $case: 'info', value: { ...agent.info, labels: { class: 'tablet' } } });
  await until('the label is told', () => of('a').at(-1)!.labels['class'] === 'tablet', 5000, 5);
  agent.kill();
  await until('it is offline', () => !of('a').at(-1)!.online, 5000, 5);
  await coordinator.join({ id: 'c' });
  await until('the newcomer is told', () => of('c').length > 0, 5000, 5);
  stream.cancel();
});

test('telemetry is no change', async () => {
  const agent = await coordinator.join({ id: 'a' });
  const { of, stream } = await watch();
  agent.telemetry({ decodeTokens: 5n });
  await until('it is counted', async () => (await coordinator.registry.devices.read('a'))?.telemetry?.decodeTokens === 5n, 5000, 5);
  await change(coordinator.operator, lambda(0.1));
  await until('a change is told', () => of('a').at(-1)!.desired?.lambda === 0.1, 5000, 5);
  expect(of('a').map((device) => [device.desiredGeneration, device.reported!.state, device.telemetry]).filter(([generation]) => generation === 0n)).toHaveLength(1);
  stream.cancel();
});

test('a device that gets other labels comes into the selector and goes out of it', async () => {
  const agent = await coordinator.join({ id: 'a', labels: { ring: 'prod' } });
  await coordinator.join({ id: 'b', labels: { ring: 'canary' } });
  const { events, of, stream } = await watch('ring=canary');
  expect(events).toHaveLength(2);
  const wear = (ring: string) => agent.send({ $case: 'info', value: { ...agent.info, labels: { ring } } });
  wear('canary');
  await until('it is in', () => of('a').length === 1, 5000, 5);
  wear('prod');
  await until('it is out', () => events.some((event) => event.$case === 'gone' && event.value === 'a'), 5000, 5);
  stream.cancel();
});

test('sees what happens at another coordinator, and a lease that runs out there without a word', async () => {
  const other = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b', leaseTtlMs: 600 });
  await other.join({ id: 'a' });
  const { of, stream } = await watch();
  const { devices } = coordinator.registry;
  const lease = await devices.acquireLease('ghost', { installId: 'i', bootId: 'b', coordinatorId: 'killed', hostname: 'h', ttlMs: 300 });
  expect(lease.t).toBe('granted');
  coordinator.registry.events.emit({ kind: 'device', deviceId: 'ghost' });
  await until('it is there', () => of('ghost').some((device) => device.online), 5000, 5);
  await until('it is offline', () => !of('ghost').at(-1)!.online, 10_000, 20);
  await other.close();
  await until('so is the other', () => !of('a').at(-1)!.online, 10_000, 20);
  stream.cancel();
});

test('holds nothing but ids for a caller that does not read, and then tells the newest state once', async () => {
  const agents = await Promise.all(['a', 'b', 'c'].map((id) => coordinator.join({ id })));
  const sent: WatchDevicesResponse[] = [];
  let room: () => void = () => {};
  const gone = new AbortController();
  const running = new DeviceWatch(coordinator.registry, []).run((message) => {
    sent.push(message);
    return new Promise((resolve, reject) => {
      room = resolve;
      gone.signal.addEventListener('abort', () => reject(gone.signal.reason as Error));
    });
  }, gone.signal);
  await until('the first waits to leave', () => sent.length === 1, 5000, 5);
  for (let at = 1; at <= 20; at += 1) await change(coordinator.operator, lambda(at / 100));
  expect(sent).toHaveLength(1);
  await until('each is told once more at most, as it is now', async () => {
    room();
    const last = (id: string) => sent.flatMap(({ event }) => (event?.$case === 'device' && event.value.id === id ? [event.value] : [])).at(-1);
    return agents.every(({ options }) => last(options.id)?.desired?.lambda === 0.2 && !last(options.id)!.drift);
  }, 5000, 5);
  // Three devices, a first state and a last one each, and that the present state is complete.
  expect(sent.length).toBeLessThanOrEqual(7);
  gone.abort();
  await expect(running).rejects.toMatchObject({ name: 'AbortError' });
});

test('ends with UNAVAILABLE where Redis is away, as nothing can be told then', async () => {
  const own = await startRedis();
  const alone = await startCoordinator(own.url);
  const client = new InventoryServiceClient(alone.addresses().operatorAddress, credentials.createInsecure());
  try {
    const ended = new Promise<ServiceError>((resolve) => {
      const stream = client.watchDevices({ selector: undefined });
      stream.on('data', () => void own.close());
      stream.on('error', resolve);
    });
    expect(await ended).toMatchObject({ code: status.UNAVAILABLE, details: expect.stringMatching(/Redis at .* does not answer/) as string });
  } finally {
    client.close();
    await alone.close();
    await own.close();
  }
});

test('a selector that is none is refused by name', async () => {
  expect((await watch('region in eu')).error).toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/selector\.expression: "region in eu"/) as string });
});

test('serves fifty at once, and tells the next to go elsewhere', async () => {
  const all = await Promise.all(Array.from({ length: 50 }, () => watch()));
  expect((await watch()).error).toMatchObject({ code: status.RESOURCE_EXHAUSTED });
  all[0]!.stream.cancel();
  await until('there is room again', async () => {
    const next = await watch();
    if (next.error) return false;
    next.stream.cancel();
    return true;
  }, 5000, 20);
  for (const { stream } of all) stream.cancel();
});
