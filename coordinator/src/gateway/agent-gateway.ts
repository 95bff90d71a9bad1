/** The server agents connect to. Holds their streams, keeps their leases alive, and passes wake-ups on to sessions. */
import type { ServerCredentials, ServerInterceptingCall, ServerInterceptor } from '@grpc/grpc-js';
import { AgentServiceService, ArtifactServiceService, ConnectResponse, EnrolmentServiceService } from '@moefleet/proto';
import type { Service } from '@moefleet/runtime';
import type { ArtifactStore } from '../artifacts/artifact-store';
import { StoppingError } from '../errors';
import { GrpcListener } from '../grpc-listener';
import type { ListenAddress } from '@moefleet/runtime';
import type { Enrolment } from '../identity/enrolment';
import type { FetchAdmission } from '../identity/fetch-admission';
import { inChunks } from '../registry/chunks';
import type { SessionDirectory } from '../sessions/session-directory';
import type { AgentSession, SessionDeps } from './agent-session';
import { Admission } from './admission';
import { type AgentCall, AgentStream, type StreamOptions } from './agent-stream';
import { MeasureRelay } from './measure-relay';
import { ConnectionGate } from './connection-gate';
import { artifactService } from './artifact-service';
import { enrolmentService } from './enrolment-service';
import { LeaseRounds } from './lease-rounds';
import { decodeIncoming } from './message-check';
import type { BudgetOptions } from './stream-budget';
import { TelemetryPace } from './telemetry-pace';

export interface GatewayOptions {
  address: ListenAddress;
  coordinatorId: string;
  telemetryIntervalMs: number;
  framesPerSecond: number;
  hellosPerSecond: number;
  connectionsPerSecond: number;
  /** how long a connection may wait for its handshake */
  connectionWaitMs?: number;
  deviceBudget: BudgetOptions;
  leaseTtlMs?: number;
  helloTimeoutMs?: number;
  /** in [0,1), for whatever spreads agents over time */
  random?: () => number;
  keepalive?: { timeMs: number; timeoutMs: number };
  /** default: plaintext */
  credentials?: () => ServerCredentials;
  /** what devices fetch; default: nothing */
  artifacts?: ArtifactStore;
  /** which devices may, where they have certificates; default: each of the fleet */
  fetchers?: Pick<FetchAdmission, 'admit'>;
  /** of the listener for models; null: there is none */
  blobPort?: () => number | null;
  /** lets devices enrol, and makes a certificate a condition; null: plaintext */
  enrolment?: Enrolment | null;
}

/** A router window of a large model fits; so does everything else, many times over. */
const MOST_MESSAGE_BYTES = 1024 * 1024;
/** A peer that is gone without a word is noticed after both. */
const KEEPALIVE = { timeMs: 10_000, timeoutMs: 5_000 };
/** Its books on every connection are read by nobody, and cost memory for each. */
const NO_CHANNELZ = { 'grpc.enable_channelz': 0 };
/** Longer than three renewals, so that one lost renewal is no loss. */
const LEASE_TTL_MS = 15_000;
const HELLO_TIMEOUT_MS = 10_000;
const PACE_EVERY_MS = 1000;
/** Of a coordinator that stops: the least and most that its agents stay away. */
const LEAST_AWAY_MS = 200;
const MOST_SPREAD_MS = 10_000;

/** As generated, but bytes that are no message end their own stream with INVALID_ARGUMENT and a reason. */
const AGENT_SERVICE = {
  connect: { ...AgentServiceService.connect, requestDeserialize: decodeIncoming, requestSerialize: () => Buffer.alloc(0), responseDeserialize: (bytes: Buffer) => ConnectResponse.decode(bytes) },
};

export class AgentGateway implements Service {
  readonly name = 'agent gateway';
  private readonly listener: GrpcListener;
  private readonly streams = new Set<AgentStream>();
  private readonly relay: MeasureRelay;
  private readonly streamOptions: StreamOptions;
  private gate!: ConnectionGate;
  private readonly admission: Admission;
  private readonly pace: TelemetryPace;
  private readonly hellosPerSecond: number;
  private readonly random: () => number;
  private unsubscribe: (() => void)[] = [];
  private readonly leases: LeaseRounds;
  private paceTimer: NodeJS.Timeout | undefined;

  constructor(private readonly directory: SessionDirectory<AgentSession>, private readonly deps: SessionDeps, options: GatewayOptions) {
    this.relay = new MeasureRelay(directory, deps.registry.measures, deps.log);
    const { timeMs, timeoutMs } = options.keepalive ?? KEEPALIVE;
    const keepalive = { 'grpc.keepalive_time_ms': timeMs, 'grpc.keepalive_timeout_ms': timeoutMs, 'grpc.keepalive_permit_without_calls': 1 };
    this.listener = new GrpcListener(options.address,
      { 'grpc.max_receive_message_length': MOST_MESSAGE_BYTES, ...keepalive, ...NO_CHANNELZ, interceptors: [tellPeer((peer) => this.gate.called(peer))] }, options.credentials,
      (admit) => (this.gate = new ConnectionGate({ connectionsPerSecond: options.connectionsPerSecond, mostWaitMs: options.connectionWaitMs, silentMs: options.helloTimeoutMs }, admit, (outcome) => deps.metrics.connections.inc({ outcome }))));
    this.leases = new LeaseRounds(directory, (options.leaseTtlMs ?? LEASE_TTL_MS) / 3);
    this.hellosPerSecond = options.hellosPerSecond;
    this.random = options.random ?? Math.random;
    this.admission = new Admission(options);
    this.pace = new TelemetryPace(options);
    this.streamOptions = {
      coordinatorId: options.coordinatorId, admission: this.admission, budget: options.deviceBudget, telemetryIntervalMs: () => this.pace.intervalMs,
      leaseTtlMs: options.leaseTtlMs ?? LEASE_TTL_MS, helloTimeoutMs: options.helloTimeoutMs ?? HELLO_TIMEOUT_MS,
      blobPort: () => options.blobPort?.() ?? undefined,
      identify: (call) => options.enrolment?.identify(call.getAuthContext()) ?? null,
    };
    if (options.enrolment) this.listener.serve(EnrolmentServiceService, enrolmentService(options.enrolment, deps.log));
    if (options.artifacts) {
      this.listener.serve(ArtifactServiceService, artifactService(options.artifacts, async (call) => {
        const device = options.enrolment?.identify(call.getAuthContext());
        if (device) await options.fetchers?.admit(device);
      }, deps.log));
    }
    this.listener.server.addService(AGENT_SERVICE, { connect: (call: AgentCall) => this.open(call) });
  }

  get address(): string {
    return this.listener.boundAddress;
  }

  /** Devices that wait to be let in. */
  get waiting(): number {
    return this.admission.queue;
  }

  /** Connections that wait for their TLS handshake. */
  get waitingConnections(): number {
    return this.gate.waiting;
  }

  get telemetryIntervalMs(): number {
    return this.pace.intervalMs;
  }

  async start(): Promise<void> {
    const { events, link } = this.deps.registry;
    this.unsubscribe = [
      events.on(({ kind, deviceId, written }) => {
        if (kind === 'desired') this.directory.get(deviceId)?.wake(written);
        if (kind === 'measure') this.relay.carryOut(deviceId);
        if (kind === 'taken' || kind === 'identity') void this.directory.get(deviceId)?.tick();
      }),
      link.onUp(() => void inChunks(this.directory.all(), (session) => session.resync())),
    ];
    this.leases.start();
    this.paceTimer = setInterval(() => this.keepPace(), PACE_EVERY_MS);
    await this.listener.listen();
  }

  async stop(): Promise<void> {
    this.leases.stop();
    clearInterval(this.paceTimer);
    for (const off of this.unsubscribe) off();
    const streams = [...this.streams];
    // Spread over the time that the coordinators left need to let them in; their leases outlive that.
    const spreadMs = Math.min(MOST_SPREAD_MS, 1000 * streams.length / this.hellosPerSecond);
    for (const stream of streams) stream.fail(new StoppingError(Math.round(LEAST_AWAY_MS + this.random() * spreadMs)));
    this.admission.close();
    await Promise.all([...streams.map((stream) => stream.done), this.listener.close(), this.deps.telemetry.drain()]);
    this.deps.peers.stop();
    await this.deps.warm.drain();
  }

  private keepPace(): void {
    if (!this.pace.adjust(this.directory.size)) return;
    this.deps.log.info({ telemetryIntervalMs: this.pace.intervalMs, devices: this.directory.size }, 'telemetry interval changed');
    for (const session of this.directory.all()) session.setPace(this.pace.intervalMs);
  }

  private open(call: AgentCall): void {
    const stream = new AgentStream(call, this.directory, this.deps, this.streamOptions);
    this.streams.add(stream);
    this.deps.metrics.streams.set(this.streams.size);
    void stream.done.then(() => {
      this.streams.delete(stream);
      this.deps.metrics.streams.set(this.streams.size);
    });
  }
}

/** Who opens a call, of whatever service; the call itself is left as it is, without a layer on each of its messages. */
function tellPeer(tell: (peer: string) => void): ServerInterceptor {
  return (_, call) => {
    tell(call.getPeer());
    return call as ServerInterceptingCall;
  };
}
