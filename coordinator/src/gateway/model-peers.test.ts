import type { ConnectResponse, ModelPeers } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { HOLDER_TTL_MS, peerGroup } from '../registry/peer-store';
import { TestAgent } from '../testing/test-agent';
import { randomPrefix, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

const MANIFEST = 'ab'.repeat(32);
const LAN = ['192.168.7.1/24'];
let redis: TestRedis;
let coordinator: TestCoordinator;
let other: TestCoordinator;
let aheadMs = 0;
const agents: TestAgent[] = [];

beforeAll(async () => {
  redis = await startRedis();
  const prefix = randomPrefix();
  const now = () => Date.now() + aheadMs;
  coordinator = await startCoordinator(redis.url, { prefix, now, leaseTtlMs: 3000 });
  other = await startCoordinator(redis.url, { prefix, id: 'coordinator-b', now, leaseTtlMs: 3000 });
});
afterAll(async () => {
  await coordinator.close();
  await other.close();
  await redis.close();
});
afterEach(() => {
  for (const agent of agents.splice(0)) agent.kill();
  aheadMs = 0;
});

class Sharing {
  readonly lists: ModelPeers[] = [];
  constructor(readonly agent: TestAgent) {
    agent.stream.on('data', ({ body }: ConnectResponse) => { if (body?.$case === 'modelPeers') this.lists.push(body.value); });
  }

  static async join(at: TestCoordinator, id: string, labels: Record<string, string> = {}): Promise<Sharing> {
    const agent = await TestAgent.join(at.gateway, { id, labels });
    agents.push(agent);
    await until(`${id} is known`, async () => (await at.registry.devices.read(id))?.info, 5000, 5);
    return new Sharing(agent);
  }

  hold(networks = LAN, over: { port?: number; whole?: boolean; manifestSha256?: string } = {}): void {
    this.agent.send({ $case: 'modelHolding', value: { manifestSha256: MANIFEST, port: 9000, networks, whole: false, ...over } });
  }

  knows(...addresses: string[]): Promise<unknown> {
    return until(`${this.agent.options.id} knows ${addresses.join(', ')}; it knows ${JSON.stringify(this.lists.at(-1))}`, () => {
      const last = this.lists.at(-1);
      return last && JSON.stringify(last.peers.map(({ address }) => address)) === JSON.stringify(addresses);
    }, 5000, 10);
  }
}

test('devices on one network are named to each other, over coordinators, as they come, are whole, and go', async () => {
  const [a, b] = [await Sharing.join(coordinator, 'a'), await Sharing.join(other, 'b')];
  a.hold(['192.168.7.1/24', '10.9.0.1/24']);
  await a.knows();
  b.hold(['192.168.7.2/24']);
  await b.knows('192.168.7.1:9000');
  await a.knows('192.168.7.2:9000');
  expect(a.lists.at(-1)).toEqual({ manifestSha256: MANIFEST, peers: [{ deviceId: 'b', address: '192.168.7.2:9000', whole: false }] });
  b.hold(['192.168.7.2/24'], { whole: true });
  await until('a hears that b is whole', () => a.lists.at(-1)!.peers[0]!.whole, 5000, 10);
  b.hold(['192.168.7.2/24'], { port: 0 });
  await a.knows();
  b.hold(['192.168.7.2/24']);
  await a.knows('192.168.7.2:9000');
  b.agent.kill();
  await a.knows();
});

test('another network, another site and another model are not beside it; a label brings together what is routed', async () => {
  const site = await Promise.all([Sharing.join(coordinator, 's1', { site: 'plant' }), Sharing.join(other, 's2', { site: 'plant' })]);
  const [far, model, elsewhere] = await Promise.all([Sharing.join(coordinator, 'far'), Sharing.join(coordinator, 'model'), Sharing.join(coordinator, 'e', { site: 'depot' })]);
  site[0]!.hold(['192.168.7.1/24']);
  site[1]!.hold(['192.168.8.1/24']);
  far.hold(['192.168.9.1/24']);
  model.hold(['192.168.9.2/24'], { manifestSha256: 'cd'.repeat(32) });
  elsewhere.hold(['192.168.7.3/24']);
  await site[0]!.knows('192.168.8.1:9000');
  await site[1]!.knows('192.168.7.1:9000');
  for (const alone of [far, model, elsewhere]) await alone.knows();
});

test('a device that comes back through another coordinator is not taken away with its older stream', async () => {
  const [a, b] = [await Sharing.join(coordinator, 'a'), await Sharing.join(coordinator, 'b')];
  a.hold(['192.168.7.1/24']);
  b.hold(['192.168.7.2/24']);
  await a.knows('192.168.7.2:9000');
  const again = await Sharing.join(other, 'b');
  again.hold(['192.168.7.4/24']);
  await a.knows('192.168.7.4:9000');
  await again.knows('192.168.7.1:9000');
  await until('the older stream is over', () => b.agent.ended, 5000, 10);
  const holders = await coordinator.registry.peers.read(peerGroup(MANIFEST, 'from 127.0.0.1'), Date.now());
  expect(holders.map(({ deviceId }) => deviceId).sort()).toEqual(['a', 'b']);
});

test('who is not renewed runs out', async () => {
  const a = await Sharing.join(coordinator, 'a');
  await coordinator.registry.peers.put(peerGroup(MANIFEST, 'from 127.0.0.1'), { deviceId: 'ghost', port: 1, networks: ['192.168.7.9/24'], whole: true }, 1n, Date.now());
  a.hold();
  await a.knows('192.168.7.9:1');
  aheadMs = HOLDER_TTL_MS + 1;
  a.hold();
  await a.knows();
});

test.each<[string, { port?: number; manifestSha256?: string }, string[]]>([
  ['a manifest that is none', { manifestSha256: '../x' }, LAN],
  ['a port that is none', { port: 70_000 }, LAN],
  ['a hundred networks', {}, new Array<string>(100).fill('10.0.0.1/8')],
  ['a network that is a novel', {}, ['x'.repeat(1000)]],
])('%s ends the stream that says so', async (_, over, networks) => {
  const a = await Sharing.join(coordinator, 'a');
  a.hold(networks, over);
  expect(await until('it is told', () => a.agent.ended, 5000, 10)).toMatchObject({ code: 3, details: expect.stringContaining('model_holding') });
});

test('what is no network is no address of anybody', async () => {
  const a = await Sharing.join(coordinator, 'a');
  a.hold(['nonsense', 'fe80::1/64', '0.0.0.0/0']);
  await a.knows();
});
