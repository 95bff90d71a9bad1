/**
 * One gRPC stream of an agent, from its first byte to its status. States: it must say hello in time; it is let in if
 * no other installation holds its device id; then the session takes over. Whatever is wrong with it ends this stream
 * alone.
 */
import { type ServerDuplexStream, status } from '@grpc/grpc-js';
import { type ConnectResponse, type Hello, PROTOCOL_VERSION } from '@moefleet/proto';
import { ClonedDeviceError, DeviceIdTakenError, InvalidRequestError, show, StoppingError } from '../errors';
import { toGrpcStatus } from '../grpc-status';
import { checkPeer, type PeerDevice } from '../identity/peer-device';
import { specHash } from '../registry/device-record';
import type { SessionDirectory } from '../sessions/session-directory';
import { AgentSession, type SessionDeps } from './agent-session';
import type { Admission } from './admission';
import { checkHello, type Incoming } from './message-check';
import { Outbox } from './outbox';
import { type BudgetOptions, StreamBudget } from './stream-budget';
import { WINDOW_CHUNK_BYTES } from './window-assembly';

export type AgentCall = ServerDuplexStream<Incoming, ConnectResponse>;

export interface StreamOptions {
  coordinatorId: string;
  /** as it is now */
  telemetryIntervalMs(): number;
  admission: Admission;
  budget: BudgetOptions;
  leaseTtlMs: number;
  helloTimeoutMs: number;
  /** undefined: there is none */
  blobPort(): number | undefined;
  /** Who the connection's certificate says it is; null: plaintext. Throws NoCertificateError. */
  identify(call: AgentCall): PeerDevice | null;
}

type StreamState =
  | { t: 'awaiting hello'; timer: NodeJS.Timeout }
  | { t: 'joining'; deviceId: string }
  | { t: 'open'; session: AgentSession }
  | { t: 'closed' };

export class AgentStream {
  /** Resolves when nothing of it runs any more. */
  readonly done: Promise<void>;
  private state: StreamState;
  private readonly outbox: Outbox;
  private readonly budget: StreamBudget;
  /** in every line about it; a logger of its own would cost a kilobyte per device */
  private readonly about: { peer: string; deviceId?: string };
  private finish!: () => void;

  constructor(private readonly call: AgentCall, private readonly directory: SessionDirectory<AgentSession>, private readonly deps: SessionDeps, private readonly options: StreamOptions) {
    this.about = { peer: call.getPeer() };
    this.done = new Promise((resolve) => { this.finish = resolve; });
    this.budget = new StreamBudget(options.budget);
    this.outbox = new Outbox(
      { write: (message, written) => { call.write(message, () => written()); } },
      (desired) => { if (this.state.t === 'open') this.state.session.noteSent(desired.generation, specHash(desired.spec)); },
    );
    const late = () => this.fail(new InvalidRequestError('hello', 'nothing', `what came within ${options.helloTimeoutMs} ms`));
    this.state = { t: 'awaiting hello', timer: setTimeout(late, options.helloTimeoutMs) };
    call.on('data', (incoming: Incoming) => this.receive(incoming));
    call.on('end', () => this.close(status.OK, 'the agent has ended its stream', () => call.end()));
    call.on('cancelled', () => this.close(status.CANCELLED, 'its stream broke', () => {}));
  }

  /** Ends the stream with the status that belongs to `error`. */
  fail(error: unknown): void {
    const failure = toGrpcStatus(error);
    if (failure.unexpected) this.deps.log.error({ ...this.about, err: error }, 'agent stream failed');
    // grpc-js sends what is emitted as 'error' as the stream's status.
    this.close(failure.code, failure.details, () => this.call.emit('error', failure), error instanceof StoppingError);
  }

  private get closed(): boolean {
    return this.state.t === 'closed';
  }

  private receive(incoming: Incoming): void {
    if (this.state.t === 'closed') return;
    try {
      if (incoming.t === 'malformed') throw new InvalidRequestError('message', incoming.reason, 'a ConnectRequest');
      const { body } = incoming.message;
      if (!body) throw new InvalidRequestError('message.body', 'nothing', 'one of hello, info, reported, telemetry, router_window, task_update, expert_use, window_chunk, model_holding');
      const within = this.budget.take(incoming.bytes);
      if (this.state.t === 'open') this.state.session.receive(body, within);
      else if (body.$case === 'hello' && this.state.t === 'awaiting hello') this.join(body.value);
      else throw new InvalidRequestError('message.body', body.$case, 'hello, which has to come first');
    } catch (error) {
      this.fail(error);
    }
  }

  private join(hello: Hello): void {
    checkHello(hello);
    const peer = this.options.identify(this.call);
    if (peer) checkPeer(hello, peer);
    // Nothing more is read until the device is in: what comes meanwhile stays with the transport.
    this.call.pause();
    this.about.deviceId = hello.deviceId;
    this.transition({ t: 'joining', deviceId: hello.deviceId });
    this.admit(hello, peer?.keyHash).catch((error: unknown) => this.fail(error));
  }

  private async admit(hello: Hello, keyHash: string | undefined): Promise<void> {
    const { devices, events } = this.deps.registry;
    const { deviceId, installId, bootId } = hello;
    await this.options.admission.enter();
    if (this.closed) return;
    const request = { installId, bootId, coordinatorId: this.options.coordinatorId, hostname: hello.info?.hostname ?? '', ttlMs: this.options.leaseTtlMs, keyHash, peer: this.call.getPeer() };
    const answer = await devices.acquireLease(deviceId, request).catch((error: unknown) => {
      if (error instanceof ClonedDeviceError && error.marked) this.deps.log.error({ ...this.about, hostname: request.hostname }, error.message);
      throw error;
    });
    if (answer.t === 'held') throw new DeviceIdTakenError(deviceId, answer.hostname, answer.coordinatorId);
    if (this.closed) return devices.releaseLease(answer.lease);
    const session = new AgentSession(hello, answer.lease, this.outbox, this.deps, (error) => this.fail(error));
    this.transition({ t: 'open', session });
    const previous = this.directory.enter(session);
    previous?.replaced();
    if (answer.replaced && !previous) events.emit({ kind: 'taken', deviceId });
    this.outbox.post({ $case: 'welcome', value: {
      coordinatorId: this.options.coordinatorId, protocolVersion: PROTOCOL_VERSION, telemetryIntervalMs: this.options.telemetryIntervalMs(),
      expertUseIntervalMs: this.deps.warm.intervalMs,
      windowChunkBytes: WINDOW_CHUNK_BYTES,
      blobPort: this.options.blobPort(),
    } });
    session.wake();
    this.call.resume();
  }

  private close(code: status, why: string, answer: () => void, comesBack = false): void {
    const from = this.state;
    if (from.t === 'closed') return;
    this.transition({ t: 'closed' }, code, why);
    this.deps.metrics.streamsEnded.inc({ code: status[code] });
    this.outbox.close();
    answer();
    if (from.t !== 'open') return this.finish();
    this.directory.leave(from.session);
    void from.session.leave(`has left: ${why}`, comesBack).finally(() => this.finish());
  }

  private transition(to: StreamState, code?: status, why?: string): void {
    const from = this.state;
    if (from.t === 'awaiting hello') clearTimeout(from.timer);
    this.state = to;
    this.deps.log.info({ ...this.about, from: from.t, to: to.t, ...(code === undefined ? {} : { code: status[code], why: show(why) }) }, 'agent stream');
  }
}
