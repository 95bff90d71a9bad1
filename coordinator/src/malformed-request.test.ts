import { type Client, status } from '@grpc/grpc-js';
import { startRedis, type TestRedis } from '../../test/harness/redis';
import { startCoordinator, type TestCoordinator } from './testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url);
});
afterAll(async () => {
  await coordinator?.close();
  await redis?.close();
});

/** A field whose length runs past the end. */
const BYTES = Buffer.from('0aff', 'hex');
const raw = (bytes: Buffer) => bytes;

test('a call whose bytes are no request learns so, and it is no fault of the coordinator\'s', async () => {
  const client: Client = coordinator.operator;
  const unary = new Promise((resolve) => client.makeUnaryRequest('/moefleet.v1.OperatorService/ListDevices', raw, raw, BYTES, resolve));
  const stream = new Promise((resolve) => client.makeServerStreamRequest('/moefleet.v1.OperatorService/ChangeConfig', raw, raw, BYTES).on('data', () => {}).on('error', resolve));
  expect(await unary).toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/^request: .* is not a listDevices request/) as string });
  expect(await stream).toMatchObject({ code: status.INVALID_ARGUMENT, details: expect.stringMatching(/is not a changeConfig request/) as string });
});
