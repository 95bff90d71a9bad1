import { connect } from 'node:net';
import { once } from 'node:events';
import { startRedis } from '../../test/harness/redis';
import { runCoordinator } from './main';
import { startCoordinator } from './testing/test-coordinator';

test('a setting that makes no sense is exit code 2', async () => {
  expect(await runCoordinator({ gateway: '0.0.0.0:7400' }, { MOEFLEET_LOG_LEVEL: 'silent' })).toBe(2);
});

test('stops for good: every port is closed, and stopping twice does no harm', async () => {
  const redis = await startRedis();
  const coordinator = await startCoordinator(redis.url);
  const { gatewayAddress, operatorAddress, httpAddress } = coordinator.addresses();
  await coordinator.close();
  await coordinator.lifecycle.stop();
  for (const address of [gatewayAddress, operatorAddress, httpAddress]) {
    const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
    const [error] = await once(socket, 'error');
    expect(error).toMatchObject({ code: 'ECONNREFUSED' });
  }
  await redis.close();
});

test('stops within seconds although Redis has gone', async () => {
  const redis = await startRedis();
  const coordinator = await startCoordinator(redis.url);
  await redis.close();
  await coordinator.close();
  expect(coordinator.registry.link.up).toBe(false);
});
