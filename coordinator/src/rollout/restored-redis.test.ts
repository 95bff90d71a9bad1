/** Redis restored from an older dump, and emptied, while devices run: nobody is sent back, generations go on upwards, the operator is told. */
import { credentials } from '@grpc/grpc-js';
import { FleetServiceClient, type GetFleetStatusResponse, RolloutServiceClient } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { dump } from '../testing/redis-dump';
import { TestAgent } from '../testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
let fleet: FleetServiceClient;
let agents: TestAgent[];
const setLambda = (lambda: number) => change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda, topJ: undefined } } });
const held = async () => (await call(coordinator, 'listDevices', { selector: undefined, pageSize: 0, pageToken: '' })).devices.filter((device) => device.held).map((device) => device.id);
const accept = () => new Promise<string[]>((resolve, reject) => { fleet.acceptRestore({ deviceId: '', why: 'test' }, (error, answer) => (error ? reject(error) : resolve(answer.deviceIds))); });
const fleetStatus = () => new Promise<GetFleetStatusResponse>((resolve, reject) => { fleet.getFleetStatus({}, (error, answer) => (error ? reject(error) : resolve(answer))); });

beforeEach(async () => {
  redis = await startRedis({ appendOnly: false });
  coordinator = await startCoordinator(redis.url);
  fleet = new FleetServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
  agents = [];
  for (const id of ['a', 'b']) agents.push(await TestAgent.join(coordinator.gateway, { id }));
});
afterEach(async () => {
  for (const agent of agents) agent.kill();
  fleet.close();
  await coordinator.close();
  await redis.close();
});

/** As it was when it was last dumped; empty where it never was. */
async function restore(): Promise<void> {
  await redis.stop();
  await until('it is noticed', () => !coordinator.registry.link.up, 5000, 5);
  await redis.start();
  await until('it is back', () => coordinator.registry.link.up, 10_000, 5);
}

const last = (agent: TestAgent) => ({ generation: agent.desired.at(-1)!.generation, lambda: agent.specs.at(-1)!.lambda, count: agent.desired.length });

test.each([['restored from an older dump', true], ['emptied', false]] as const)('%s', async (_, dumped) => {
  await setLambda(0.1);
  if (dumped) await dump(redis.url);
  await setLambda(0.2);
  await setLambda(0.3);
  const before = agents.map(last);
  expect(before.map(({ lambda }) => lambda)).toEqual([0.3, 0.3]);
  await restore();

  await until('both are held', async () => (await held()).join() === 'a,b', 10_000, 20);
  expect(await fleetStatus()).toMatchObject({ devicesHeld: 2, devicesOnline: 2 });
  // A device that comes back is held too, and an operator's change does not reach it before the loss is accepted.
  agents[1]!.kill();
  const back = await TestAgent.join(coordinator.gateway, { id: 'b', reported: agents[1]!.reported });
  agents.push(back);
  const rows = (await setLambda(0.4)).at(-1)!.devices;
  expect(rows.map((row) => row.reason)).toEqual([expect.stringContaining('accept-restore'), expect.stringContaining('accept-restore')]);
  expect(last(agents[0]!)).toEqual(before[0]);
  expect(back.desired).toEqual([]);
  // One that never ran anything gets what is set.
  const fresh = await TestAgent.join(coordinator.gateway, { id: 'fresh' });
  agents.push(fresh);
  await until('the newcomer has it', () => fresh.desired.length, 5000, 5);

  expect(await accept()).toEqual(['a', 'b']);
  await until('both have it', () => [agents[0]!, back].every((agent) => agent.specs.at(-1)?.lambda === 0.4), 5000, 5);
  for (const agent of [agents[0]!, back]) expect(last(agent).generation).toBeGreaterThan(before[0]!.generation);
  await until('nobody is held any more', async () => (await held()).length === 0, 5000, 20);
  expect(await accept()).toEqual([]);
});

test('the kill switch reaches held devices', async () => {
  await setLambda(0.3);
  const { generation } = last(agents[0]!);
  await restore();
  await until('both are held', async () => (await held()).join() === 'a,b', 10_000, 20);
  await new Promise<void>((resolve, reject) => {
    const rollouts = new RolloutServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
    const stream = rollouts.killLambda({ why: 'test', timeoutMs: 5000 });
    stream.on('data', () => {}).on('error', reject).on('end', () => { rollouts.close(); resolve(); });
  });
  await until('lambda is off', () => agents[0]!.specs.at(-1)!.lambda === 0 && last(agents[0]!).generation > generation, 5000, 5);
});
