/** A master that dies under Sentinel: the coordinator goes on with its replica, devices keep streams and specs, telemetry is whole. */
import { until } from '../../../test/harness/ports';
import { SENTINEL_NAME, startSentinelRedis, type SentinelRedis } from '../testing/sentinel-redis';
import { TestAgent } from '../testing/test-agent';
import { call, change, startCoordinator } from '../testing/test-coordinator';
import { parseRedisUrl, shownUrl } from '@moefleet/runtime/redis';

let redis: SentinelRedis | undefined;
afterEach(() => redis?.close());

test('goes on with the replica that Sentinel has made master', async () => {
  redis = await startSentinelRedis();
  const coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_REDIS_SENTINEL: SENTINEL_NAME } });
  const agent = await TestAgent.join(coordinator.gateway, { id: 'd' });
  try {
    await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.2, topJ: undefined } } });
    agent.telemetry({ decodeTokens: 10n });
    await until('it is counted', async () => (await coordinator.registry.telemetry.sums()).all.decodeTokens === 10n, 5000, 20);
    await redis.failover();
    await until('the coordinator is back', () => coordinator.registry.link.up, 20_000, 50);
    expect(agent.ended).toBeNull();
    agent.telemetry({ decodeTokens: 25n });
    await until('it is counted on', async () => (await coordinator.registry.telemetry.sums()).all.decodeTokens === 25n, 10_000, 50);
    const before = agent.desired.length;
    await until('a change arrives', async () => {
      await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.3, topJ: undefined } } });
      return agent.desired.length > before;
    }, 10_000, 100);
    expect(agent.specs.at(-1)!.lambda).toBe(0.3);
    // BullMQ is on the new master as well.
    expect((await until('a job is queued', () => call(coordinator, 'runLearner', {}), 10_000, 100)).jobId).not.toBe('');
  } finally {
    agent.kill();
    await coordinator.close();
  }
}, 60_000);

test('reads one address, several, and no others', () => {
  expect(parseRedisUrl('rediss://me:p%40ss@a:1,[::1]:2,c/3')).toEqual({
    tls: true, username: 'me', password: 'p@ss', db: 3, nodes: [{ host: 'a', port: 1 }, { host: '::1', port: 2 }, { host: 'c', port: undefined }],
  });
  for (const text of ['http://a', 'redis://', 'redis://a:99999', 'redis://a,', 'redis://a b', 'a:6379', 'redis://a:1/x']) expect(parseRedisUrl(text)).toBeNull();
  expect(shownUrl('redis://me:secret@a:1,b:2/')).toBe('redis://me:***@a:1,b:2');
});
