/** The fleet as operators see it: over real gRPC, with two coordinators on one Redis, and through the command line's own code. */
import { credentials, type ServiceError, status } from '@grpc/grpc-js';
import { FleetServiceClient, type GetDeviceHistoryResponse, type GetFleetStatusResponse } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let first: TestCoordinator;
let second: TestCoordinator;
let fleet: FleetServiceClient;
const agents: TestAgent[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  first = await startCoordinator(redis.url, { id: 'one' });
  second = await startCoordinator(redis.url, { id: 'two', prefix: first.prefix });
  fleet = new FleetServiceClient(first.addresses().operatorAddress, credentials.createInsecure());
});
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  fleet.close();
  await first.close();
  await second.close();
});

async function join(where: TestCoordinator, id: string, className: string): Promise<TestAgent> {
  const agent = await TestAgent.join(where.gateway, { id, labels: { class: className } });
  agents.push(agent);
  return agent;
}

const getStatus = () => new Promise<GetFleetStatusResponse>((resolve, reject) => { fleet.getFleetStatus({}, (error, answer) => (error ? reject(error) : resolve(answer))); });
const getHistory = (deviceId: string) => new Promise<GetDeviceHistoryResponse>((resolve, reject) => { fleet.getDeviceHistory({ deviceId }, (error, answer) => (error ? reject(error) : resolve(answer))); });

test('sums what devices of all coordinators have counted, by class and model, and knows who is there', async () => {
  const a = await join(first, 'a', 'phone');
  const b = await join(second, 'b', 'jetson');
  a.telemetry({ decodeTokens: 10n, decodeSlots: { hits: 30n, misses: 10n, swaps: 2n }, flashBytes: 1000n });
  b.telemetry({ decodeTokens: 5n, decodeSlots: { hits: 20n, misses: 0n, swaps: 0n } });
  await until('both are counted', async () => (await getStatus()).totals?.decodeTokens === 15n, 5000, 20);
  const answer = await getStatus();
  expect(answer).toMatchObject({
    devicesOnline: 2, devicesOffline: 0, devicesDrifting: 0, totals: { hits: 50n, misses: 10n, swaps: 2n, flashBytes: 1000n },
    byClass: [{ name: 'jetson', totals: { decodeTokens: 5n } }, { name: 'phone', totals: { decodeTokens: 10n } }],
    byModel: [{ name: 'ab'.repeat(32), totals: { decodeTokens: 15n } }],
    frames: { counted: 2n, duplicate: 0n, refused: 0n, shed: 0n, boots: 2n }, redisUrl: redis.url,
  });
  expect(answer.coordinators).toMatchObject([
    { coordinatorId: 'one', gatewayAddress: first.gateway, stopping: false }, { coordinatorId: 'two', gatewayAddress: second.gateway },
  ]);
  expect((await getHistory('a')).points).toMatchObject([{ decodeTokens: 10, hits: 30, misses: 10, swaps: 2, flashBytes: 1000 }]);
  await b.leave();
  await until('b is offline', async () => (await getStatus()).devicesOffline === 1, 5000, 20);
  expect((await getStatus()).totals?.decodeTokens).toBe(15n);
});

test('a device nobody knows, and an id that is none, are named', async () => {
  await expect(getHistory('nobody')).rejects.toMatchObject({ code: status.NOT_FOUND, details: expect.stringContaining('nobody') } satisfies Partial<Record<keyof ServiceError, unknown>>);
  await expect(getHistory('no id')).rejects.toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringContaining('device_id') });
});

test('a device that takes its stream to another coordinator is not counted twice', async () => {
  const before = await join(first, 'd', 'phone');
  before.telemetry({ sequence: 1n, decodeTokens: 10n });
  await until('it is counted', async () => (await getStatus()).totals?.decodeTokens === 10n, 5000, 20);
  const after = await join(second, 'd', 'phone');
  after.telemetry({ sequence: 1n, decodeTokens: 10n });
  after.telemetry({ sequence: 2n, decodeTokens: 12n });
  await until('the new frame is counted', async () => (await getStatus()).totals?.decodeTokens === 12n, 5000, 20);
  expect((await getStatus()).frames?.boots).toBe(1n);
});
