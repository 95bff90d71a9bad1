import { until } from '../../../../test/harness/ports';
import { startRedis } from '../../../../test/harness/redis';
import { createQueueClient } from './redis-client';

test('what blocks for a worker is answered when it disconnects while Redis is away', async () => {
  const redis = await startRedis();
  const client = createQueueClient({ url: redis.url, cluster: false }, 'test').on('error', () => {});
  const blocking = client.duplicate().on('error', () => {});
  try {
    const answer = Promise.resolve(blocking.bzpopmin('marker', 0)).then(() => null, (error: Error) => error.message);
    await until('it blocks', async () => /cmd=bzpopmin/.test(String(await client.client('LIST'))), 5000, 10);
    await redis.stop();
    await until('it is between two attempts', () => blocking.status === 'reconnecting', 10_000, 1);
    blocking.disconnect();
    expect(await answer).toBe('Connection is closed.');
  } finally {
    for (const one of [client, blocking]) one.disconnect();
    await redis.close();
  }
});
