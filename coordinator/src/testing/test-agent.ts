/** An agent for tests: a real gRPC client on the agents' service that does as it is told, or misbehaves on request. */
import { type ChannelCredentials, type ChannelOptions, type ClientDuplexStream, credentials, type ServiceError } from '@grpc/grpc-js';
import {
  AgentServiceClient, ConnectRequest, type ConnectResponse, type Desired, DeviceInfo, DeviceSpec, EffectiveSpec, ModelState, ONE_DIAL, Reported, Routing, SpecState,
  type Task, TelemetryFrame, type WarmList, type Welcome,
} from '@moefleet/proto';
import { createHash } from 'node:crypto';
import { until } from '../../../test/harness/ports';

export const MODEL_HASH = 'ab'.repeat(32);

export interface TestAgentOptions {
  id: string;
  installId?: string;
  bootId?: string;
  hostname?: string;
  labels?: Record<string, string>;
  modelHash?: string;
  reported?: Reported;
  /** what to do with a Desired; default: APPLYING, then APPLIED */
  onDesired?: 'apply' | 'refuse' | 'ignore' | 'start only';
  /** default: that of `testInfo` */
  info?: DeviceInfo;
  /** report what is in force of an applied spec, as an agent does that has nothing to correct; default: only that it is applied */
  effective?: boolean;
  /** default: plaintext */
  channel?: { credentials: ChannelCredentials; options: ChannelOptions };
  onTask?: (task: Task, agent: TestAgent) => void;
}

type Body = NonNullable<ConnectRequest['body']>;

export class TestAgent {
  readonly desired: Desired[] = [];
  readonly cancelled: string[] = [];
  readonly warmLists: WarmList[] = [];
  welcome: Welcome | null = null;
  pace: number | null = null;
  fullStateAsked = 0;
  ended: ServiceError | 'ok' | null = null;
  reported: Reported;
  private readonly client: AgentServiceClient;
  readonly stream: ClientDuplexStream<ConnectRequest, ConnectResponse>;
  private sequence = 0n;

  constructor(address: string, readonly options: TestAgentOptions) {
    const { credentials: secured = credentials.createInsecure(), options: channelOptions = {} } = options.channel ?? {};
    this.client = new AgentServiceClient(address, secured, { ...channelOptions, ...ONE_DIAL });
    this.reported = options.reported ?? noReport();
    this.stream = this.client.connect();
    this.stream.on('data', (message: ConnectResponse) => this.receive(message));
    this.stream.on('error', (error: ServiceError) => { this.ended ??= error; });
    this.stream.on('end', () => { this.ended ??= 'ok'; });
  }

  static async join(address: string, options: TestAgentOptions): Promise<TestAgent> {
    const agent = new TestAgent(address, options);
    agent.hello();
    await until(`${options.id} is welcome`, () => agent.welcome ?? agent.ended, 5000, 5);
    if (agent.ended && agent.ended !== 'ok') throw agent.ended;
    return agent;
  }

  get info(): DeviceInfo {
    return this.options.info ?? testInfo(this.options);
  }

  hello(protocolVersion = 1): void {
    const { id, installId = `install-${id}`, bootId = `boot-${id}` } = this.options;
    this.send({ $case: 'hello', value: { deviceId: id, installId, bootId, protocolVersion, info: this.info, reported: this.reported } });
  }

  send(body: Body): void {
    this.stream.write({ body });
  }

  report(change: Partial<Reported>): void {
    this.reported = { ...this.reported, ...change };
    this.send({ $case: 'reported', value: this.reported });
  }

  telemetry(frame: Partial<TelemetryFrame> = {}): void {
    this.sequence = frame.sequence ?? this.sequence + 1n;
    this.send({ $case: 'telemetry', value: TelemetryFrame.decode(TelemetryFrame.encode({ ...TelemetryFrame.decode(new Uint8Array()), ...frame, sequence: this.sequence }).finish()) });
  }

  /** The specs it was sent, decoded. */
  get specs(): DeviceSpec[] {
    return this.desired.map((desired) => DeviceSpec.decode(desired.spec));
  }

  apply(desired: Desired): void {
    this.report({ ...(this.options.effective ? { effective: effectiveOf(desired) } : {}), state: SpecState.SPEC_STATE_APPLIED, generation: desired.generation, appliedGeneration: desired.generation, appliedHash: sha256(desired.spec) });
  }

  /** As when the machine loses its power: no status, no farewell. */
  kill(): void {
    this.stream.cancel();
    this.client.close();
  }

  async leave(): Promise<void> {
    this.stream.end();
    await until(`${this.options.id} has left`, () => this.ended, 5000, 5);
    this.client.close();
  }

  private receive({ body }: ConnectResponse): void {
    switch (body?.$case) {
      case 'welcome': this.welcome = body.value; break;
      case 'desired': this.desired.push(body.value); this.obey(body.value); break;
      case 'pace': this.pace = body.value.telemetryIntervalMs; break;
      case 'warmList': this.warmLists.push(body.value); break;
      case 'reportFullState': this.fullStateAsked += 1; break;
      case 'task': this.options.onTask?.(body.value, this); break;
      case 'cancelTask': this.cancelled.push(body.value.taskId); break;
    }
  }

  private obey(desired: Desired): void {
    const mode = this.options.onDesired ?? 'apply';
    if (mode === 'ignore') return;
    this.report({ state: SpecState.SPEC_STATE_APPLYING, generation: desired.generation, reason: '' });
    if (mode === 'apply') this.apply(desired);
    if (mode === 'refuse') this.report({ state: SpecState.SPEC_STATE_FAILED, generation: desired.generation, reason: 'capacity does not fit' });
  }
}

function effectiveOf({ spec }: Desired): EffectiveSpec {
  const { lambda = 0, topJ = 2, cache } = DeviceSpec.decode(spec);
  return EffectiveSpec.fromPartial({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities: cache?.$case === 'capacities' ? cache.value.experts : [] });
}

export function noReport(): Reported {
  return Reported.decode(new Uint8Array());
}

export function testInfo({ id, hostname = `host-${id}`, labels = {}, modelHash = MODEL_HASH }: Pick<TestAgentOptions, 'id' | 'hostname' | 'labels' | 'modelHash'>): DeviceInfo {
  const model: ModelState = {
    ...ModelState.decode(new Uint8Array()), hash: modelHash, name: 'tiny', architecture: 'qwen2moe', experts: 32, topK: 4,
    moeLayers: [0, 1, 2], expertBytes: [1000n, 1000n, 1000n],
  };
  return { ...DeviceInfo.decode(new Uint8Array()), agentVersion: '0', hostname, labels, ...(modelHash ? { model } : {}) };
}

export function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}
