/**
 * The agent's stream to its coordinator: dial, say hello, take what is desired, tell what is reported; when it ends,
 * wait a jittered time and dial again, for ever. Losing it costs nothing but news. One state at a time; what a state
 * holds (stream, timers) ends with it.
 */
import { type ClientDuplexStream, type ServiceError, status } from '@grpc/grpc-js';
import {
  AgentServiceClient, type ConnectRequest, type ConnectResponse, type Desired, type DeviceInfo, type ModelPeers, ONE_DIAL, PROTOCOL_VERSION, type Reported, type Task,
  type TelemetryFrame, type WarmList, type Welcome, type WindowAck,
} from '@moefleet/proto';
import { backoffMs, type Logger, type Service } from '@moefleet/runtime';
import { type ChannelSecurity, type LiveChannel, PLAINTEXT } from './identity';
import { planRetry } from './session-retry';
import type { StreamOutbox } from './stream-outbox';

/** A coordinator that a whole fleet comes to at once lets agents wait for up to 20 s. */
const WELCOME_TIMEOUT_MS = 30_000;
/** A stream that held this long was no false start: the next wait is a short one again. */
const SETTLED_MS = 5_000;
/** A coordinator that is gone without a word is noticed after both. */
const KEEPALIVE = { timeMs: 20_000, timeoutMs: 10_000 };
const BACKOFF = { baseMs: 500, maxMs: 30_000 };
/** Above the largest Measure (512 KiB of text, 64 prompts) and the largest router window. */
const MAX_MESSAGE_BYTES = 8 * 1024 * 1024;
const TELEMETRY_INTERVAL_MS = { min: 100, fallback: 5_000, max: 300_000 };

type Stream = ClientDuplexStream<ConnectRequest, ConnectResponse>;

type State =
  | { t: 'idle' }
  /** gets what it takes to dial: a certificate, where it has none */
  | { t: 'preparing' }
  | { t: 'connecting'; client: AgentServiceClient; stream: Stream; timer: NodeJS.Timeout }
  | { t: 'open'; client: AgentServiceClient; stream: Stream; coordinatorId: string; sinceMs: number; timer: NodeJS.Timeout; writable: boolean }
  | { t: 'waiting'; timer: NodeJS.Timeout };

export interface SessionOptions {
  /** host:port of the coordinator's agent gateway */
  coordinator: string;
  deviceId: string;
  installId: string;
  bootId: string;
  outbox: StreamOutbox;
  info: () => DeviceInfo;
  reported: () => Reported;
  telemetry: () => Promise<TelemetryFrame>;
  onDesired: (desired: Desired) => void;
  onTask: (task: Task) => void;
  onCancelTask: (taskId: string) => void;
  onWelcome?: (welcome: Welcome) => void;
  onWarmList?: (list: WarmList) => void;
  onWindowAck?: (ack: WindowAck) => void;
  onModelPeers?: (peers: ModelPeers) => void;
  /** the stream that tasks came by has ended */
  onLost: () => void;
  log: Logger;
  /** how to dial, asked before each dial; default: plaintext. Rejects with a code and details, as a stream does */
  security?: () => Promise<ChannelSecurity>;
  random?: () => number;
  /** what tests make shorter */
  keepalive?: { timeMs: number; timeoutMs: number };
}

export class AgentSession implements Service {
  readonly name = 'coordinator session';
  private state: State = { t: 'idle' };
  private attempt = 0;
  private stopped = false;

  constructor(private readonly options: SessionOptions) {}

  get connected(): boolean {
    return this.state.t === 'open';
  }

  /** of the live stream; null where there is none */
  get channel(): LiveChannel | null {
    return this.state.t === 'open' ? this.state.client.getChannel() : null;
  }

  async start(): Promise<void> {
    this.dial();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    const { state } = this;
    if (state.t === 'open') state.stream.end();
    this.transition({ t: 'idle' });
  }

  /** Call after something was put in the outbox. */
  flush(): void {
    const { state } = this;
    if (state.t !== 'open') return;
    while (state.writable) {
      const message = this.options.outbox.next();
      if (!message) return;
      state.writable = state.stream.write(message);
    }
  }

  private dial(): void {
    const { security } = this.options;
    if (!security) return this.connect(PLAINTEXT);
    this.transition({ t: 'preparing' });
    security().then((secured) => {
      if (this.state.t === 'preparing') this.connect(secured);
    }, (error: Pick<ServiceError, 'code' | 'details' | 'metadata' | 'message'>) => {
      if (this.state.t === 'preparing') this.dialLater({ code: error.code ?? status.UNKNOWN, details: error.details || error.message, metadata: error.metadata });
    });
  }

  private connect({ credentials, options }: ChannelSecurity): void {
    const { timeMs, timeoutMs } = this.options.keepalive ?? KEEPALIVE;
    // A client of its own per attempt: a shared channel would answer from its own backoff instead of ours.
    const client = new AgentServiceClient(this.options.coordinator, credentials, {
      ...options,
      ...ONE_DIAL,
      'grpc.keepalive_time_ms': timeMs,
      'grpc.keepalive_timeout_ms': timeoutMs,
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    });
    const stream = client.connect();
    const timer = setTimeout(() => this.lost(stream, { code: status.DEADLINE_EXCEEDED, details: `no answer within ${WELCOME_TIMEOUT_MS} ms` }), WELCOME_TIMEOUT_MS);
    this.transition({ t: 'connecting', client, stream, timer });
    stream.on('data', (message: ConnectResponse) => this.receive(stream, message));
    stream.on('drain', () => {
      if (this.state.t !== 'open' || this.state.stream !== stream) return;
      this.state.writable = true;
      this.flush();
    });
    stream.on('error', (error: ServiceError) => this.lost(stream, error));
    stream.on('end', () => this.lost(stream, { code: status.UNAVAILABLE, details: 'the coordinator ended the stream' }));
    this.options.outbox.streamBegins();
    const { deviceId, installId, bootId } = this.options;
    stream.write({
      body: { $case: 'hello', value: { deviceId, installId, bootId, protocolVersion: PROTOCOL_VERSION, info: this.options.info(), reported: this.options.reported() } },
    });
  }

  private receive(stream: Stream, { body }: ConnectResponse): void {
    const { state } = this;
    if ((state.t !== 'connecting' && state.t !== 'open') || state.stream !== stream || !body) return;
    switch (body.$case) {
      case 'welcome': return this.welcomed(stream, body.value);
      case 'desired': return this.options.onDesired(body.value);
      case 'pace': return this.setPace(body.value.telemetryIntervalMs);
      case 'reportFullState': return void this.reportAll();
      case 'task': return this.options.onTask(body.value);
      case 'warmList': return this.options.onWarmList?.(body.value);
      case 'windowAck': return this.options.onWindowAck?.(body.value);
      case 'modelPeers': return this.options.onModelPeers?.(body.value);
      case 'cancelTask': return this.options.onCancelTask(body.value.taskId);
    }
  }

  private welcomed(stream: Stream, welcome: Welcome): void {
    const { state } = this;
    if (state.t !== 'connecting') return;
    const { coordinatorId, telemetryIntervalMs } = welcome;
    const timer = this.telemetryTimer(telemetryIntervalMs);
    this.transition({ t: 'open', client: state.client, stream, coordinatorId, sinceMs: Date.now(), timer, writable: true });
    this.options.onWelcome?.(welcome);
    // What changed between Hello and Welcome.
    void this.reportAll();
  }

  private setPace(telemetryIntervalMs: number): void {
    const { state } = this;
    if (state.t !== 'open') return;
    clearInterval(state.timer);
    state.timer = this.telemetryTimer(telemetryIntervalMs);
  }

  private telemetryTimer(askedMs: number): NodeJS.Timeout {
    const { min, fallback, max } = TELEMETRY_INTERVAL_MS;
    return setInterval(() => void this.sendTelemetry(), askedMs === 0 ? fallback : Math.min(Math.max(askedMs, min), max));
  }

  private async reportAll(): Promise<void> {
    this.options.outbox.putInfo(this.options.info());
    this.options.outbox.putReported(this.options.reported());
    this.flush();
    await this.sendTelemetry();
  }

  private async sendTelemetry(): Promise<void> {
    try {
      this.options.outbox.putTelemetry(await this.options.telemetry());
      this.flush();
    } catch (error) {
      this.options.log.warn({ reason: (error as Error).message }, 'telemetry cannot be taken');
    }
  }

  private lost(stream: Stream, error: Pick<ServiceError, 'code' | 'details'> & { metadata?: ServiceError['metadata'] }): void {
    const { state } = this;
    if ((state.t !== 'connecting' && state.t !== 'open') || state.stream !== stream) return;
    if (state.t === 'open') {
      if (Date.now() - state.sinceMs > SETTLED_MS) this.attempt = 0;
      this.options.onLost();
    }
    if (this.stopped) return this.transition({ t: 'idle' });
    this.dialLater(error);
  }

  private dialLater(error: Pick<ServiceError, 'code' | 'details'> & { metadata?: ServiceError['metadata'] }): void {
    const jitteredMs = backoffMs(this.attempt, { ...BACKOFF, random: this.options.random ?? Math.random });
    const asked = error.metadata?.get('retry-after-ms')[0];
    const retry = planRetry(error.code, asked === undefined ? null : Number(asked), jitteredMs, this.options.random ?? Math.random);
    this.attempt += 1;
    const { coordinator, deviceId } = this.options;
    const fields = { coordinator, deviceId, code: status[error.code] ?? String(error.code), reason: error.details, waitMs: Math.round(retry.waitMs) };
    if (retry.nextStep) this.options.log.error({ ...fields, nextStep: retry.nextStep }, 'coordinator refuses this agent');
    else this.options.log.warn(fields, 'coordinator away; the agent serves on');
    this.transition({ t: 'waiting', timer: setTimeout(() => this.dial(), retry.waitMs) });
  }

  private transition(to: State): void {
    const from = this.state;
    this.state = to;
    if (from.t === 'open') clearInterval(from.timer);
    else if (from.t !== 'idle' && from.t !== 'preparing') clearTimeout(from.timer);
    if ((from.t === 'connecting' || from.t === 'open') && (to.t === 'idle' || to.t === 'waiting')) {
      // Its errors are nobody's any more.
      from.stream.removeAllListeners().on('error', () => {});
      from.stream.cancel();
      from.client.close();
    }
    const { log } = this.options;
    if (to.t === 'open') log.info({ from: from.t, to: to.t, coordinatorId: to.coordinatorId, coordinator: this.options.coordinator }, 'session state');
    else log.debug({ from: from.t, to: to.t }, 'session state');
  }
}
