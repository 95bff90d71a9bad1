import { Hello } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { Metrics } from '../metrics';
import { RedisLink } from '../registry/redis-link';
import { Registry } from '../registry/registry';
import { testInfo } from '../testing/test-agent';
import { randomPrefix } from '../testing/test-coordinator';
import { WarmExchange } from '../warm/warm-exchange';
import { AgentSession } from './agent-session';
import { WindowRoom } from './window-assembly';
import { Outbox } from './outbox';
import { PeerExchange } from '../peers/peer-exchange';
import { ReportBatch } from './report-batch';
import { TelemetryBatch } from './telemetry-batch';

const log = createLogger('test', 'silent');
let redis: TestRedis;
let link: RedisLink;
beforeAll(async () => {
  redis = await startRedis();
  link = new RedisLink({ url: redis.url, cluster: false }, log);
  await link.start();
});
afterAll(async () => {
  await link.stop();
  await redis.close();
});

test('a session that has left does not take its lease again when its turn to prolong it comes', async () => {
  const registry = new Registry(link, { prefix: randomPrefix(), coordinatorId: 'a' }, log);
  const answer = await registry.devices.acquireLease('d', { installId: 'install', bootId: 'boot', coordinatorId: 'a', hostname: 'host', ttlMs: 10_000 });
  if (answer.t !== 'granted') throw new Error('held');
  const outbox = new Outbox({ write: (_, written) => written() }, () => {});
  const hello = Hello.fromPartial({ deviceId: 'd', installId: 'install', bootId: 'boot', info: testInfo({ id: 'd' }) });
  const metrics = new Metrics();
  const telemetry = new TelemetryBatch({ up: false, count: async () => [] }, metrics, log);
  const warm = new WarmExchange(registry.warm, { intervalMs: 0 }, metrics, log);
  const session = new AgentSession(hello, answer.lease, outbox, { registry, alignDevice: async () => null, telemetry, reports: new ReportBatch(() => false), warm, windowRoom: new WindowRoom(), peers: new PeerExchange(registry.peers, registry.events, Date.now, log), metrics, log }, () => {});

  await session.tick();
  expect((await registry.devices.read('d'))?.lease).not.toBeNull();
  await session.leave('has left');
  await session.tick();
  expect((await registry.devices.read('d'))?.lease).toBeNull();
});
