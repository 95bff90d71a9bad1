/** A whole coordinator for tests, in this process, on free ports, under a prefix of its own. */
import { type ChannelCredentials, type ChannelOptions, credentials } from '@grpc/grpc-js';
import { type ChangeConfigRequest, LearnerServiceClient, type LearnerServiceServer, OperatorServiceClient, type OperatorServiceServer, type Rollout, RolloutServiceClient, type RolloutServiceServer } from '@moefleet/proto';
import { COORDINATOR_NAME, createLogger } from '@moefleet/runtime';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readConfig } from '../config';
import { until } from '../../../test/harness/ports';
import { buildCoordinator, type Coordinator, type CoordinatorTuning } from '../main';
import { TestAgent, type TestAgentOptions } from './test-agent';

export interface TestCoordinator extends Coordinator {
  readonly gateway: string;
  readonly http: string;
  readonly operator: OperatorServiceClient;
  readonly learner: LearnerServiceClient;
  readonly rollouts: RolloutServiceClient;
  readonly prefix: string;
  /** Resolves when the registry knows the device. */
  join(options: TestAgentOptions): Promise<TestAgent>;
  /** Its agents go first. */
  close(): Promise<void>;
}

export interface TestCoordinatorOptions extends CoordinatorTuning {
  prefix?: string;
  id?: string;
  env?: Record<string, string>;
}

export function randomPrefix(): string {
  return `test-${randomBytes(6).toString('hex')}`;
}

export async function startCoordinator(redisUrl: string, options: TestCoordinatorOptions = {}): Promise<TestCoordinator> {
  const { prefix = randomPrefix(), id = 'coordinator-a', env = {}, ...tuning } = options;
  const config = readConfig({
    MOEFLEET_REDIS_URL: redisUrl, MOEFLEET_REDIS_PREFIX: prefix, MOEFLEET_COORDINATOR_ID: id, MOEFLEET_LEARN_EVERY: '0', MOEFLEET_REQUIRE_OPERATOR_TOKEN: 'false',
    MOEFLEET_GATEWAY_LISTEN: '127.0.0.1:0', MOEFLEET_OPERATOR_LISTEN: '127.0.0.1:0', MOEFLEET_HTTP_LISTEN: '127.0.0.1:0', ...env,
  });
  const coordinator = buildCoordinator(config, createLogger('test', process.env['MOEFLEET_TEST_LOG'] ?? 'silent'), tuning);
  await coordinator.lifecycle.start();
  const { gatewayAddress, operatorAddress, httpAddress } = coordinator.addresses();
  const channel = testChannel(config.tlsFolder);
  const operator = new OperatorServiceClient(operatorAddress, channel.credentials, channel.options);
  const learner = new LearnerServiceClient(operatorAddress, channel.credentials, channel.options);
  const rollouts = new RolloutServiceClient(operatorAddress, channel.credentials, channel.options);
  const agents: TestAgent[] = [];
  return {
    ...coordinator, gateway: gatewayAddress, http: `http://${httpAddress}`, operator, learner, rollouts, prefix,
    async join(options) {
      const agent = await TestAgent.join(gatewayAddress, options);
      agents.push(agent);
      await until(`${options.id} is known`, async () => (await coordinator.registry.devices.read(options.id))?.info, 5000, 5);
      return agent;
    },
    async close() {
      for (const agent of agents.splice(0)) agent.kill();
      operator.close();
      learner.close();
      rollouts.close();
      await coordinator.lifecycle.stop();
    },
  };
}

/** How clients dial a coordinator whose fleet's folder is `tlsFolder`; `device`: PEM of a key and a certificate. */
export function testChannel(tlsFolder: string | null, device?: { key: string; certificate: string }): { credentials: ChannelCredentials; options: ChannelOptions } {
  if (tlsFolder === null) return { credentials: credentials.createInsecure(), options: {} };
  const ca = readFileSync(join(tlsFolder, 'ca.pem'));
  return {
    credentials: device ? credentials.createSsl(ca, Buffer.from(device.key), Buffer.from(device.certificate)) : credentials.createSsl(ca),
    options: { 'grpc.ssl_target_name_override': COORDINATOR_NAME },
  };
}

type Api = OperatorServiceServer & LearnerServiceServer;
type UnaryMethod = 'listDevices' | 'getDevice' | 'getRollout' | 'runLearner' | 'getLearner' | 'listLearnable' | 'getSurface' | 'putSurface' | 'propose' | 'reportActivity';
type RequestOf<M extends UnaryMethod> = Parameters<Api[M]>[0]['request'];
type ResponseOf<M extends UnaryMethod> = NonNullable<Parameters<Parameters<Api[M]>[1]>[1]>;

/** A unary call of either service as a promise. */
export function call<M extends UnaryMethod>({ operator, learner }: TestCoordinator, method: M, request: RequestOf<M>): Promise<ResponseOf<M>> {
  const client = (method in operator ? operator : learner) as unknown as Record<string, (request: unknown, done: (error: unknown, response: ResponseOf<M>) => void) => void>;
  return new Promise((resolve, reject) => {
    client[method]!(request, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

type RolloutMethod = 'planRollout' | 'startRollout' | 'getStagedRollout' | 'pauseRollout' | 'resumeRollout' | 'rollbackRollout' | 'listRollouts';
type RolloutAnswer<M extends RolloutMethod> = NonNullable<Parameters<Parameters<RolloutServiceServer[M]>[1]>[1]>;

/** A unary call of the staged rollouts' service as a promise. */
export function askRollouts<M extends RolloutMethod>({ rollouts }: Pick<TestCoordinator, 'rollouts'>, method: M, request: Parameters<RolloutServiceServer[M]>[0]['request']): Promise<RolloutAnswer<M>> {
  const client = rollouts as unknown as Record<string, (request: unknown, done: (error: unknown, answer: RolloutAnswer<M>) => void) => void>;
  return new Promise((resolve, reject) => {
    client[method]!(request, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** Follows a change to its end; all messages, the last is the finished rollout. */
export async function change(operator: OperatorServiceClient, request: Partial<ChangeConfigRequest>): Promise<Rollout[]> {
  const rollouts: Rollout[] = [];
  const stream = operator.changeConfig({ target: { kind: { $case: 'all', value: true } }, change: undefined, why: '', timeoutMs: 5000, stageMany: false, ...request });
  for await (const { rollout } of stream as AsyncIterable<{ rollout: Rollout }>) rollouts.push(rollout);
  return rollouts;
}
