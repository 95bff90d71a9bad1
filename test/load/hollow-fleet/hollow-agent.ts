/**
 * An agent without an engine: what the coordinator sees of it is what a real one says. It dials, says hello, sends the
 * recording's telemetry at the interval it is told, and takes what is desired: APPLYING, then APPLIED with the hash of
 * the bytes received. When its stream ends it waits as a real agent waits, and dials again.
 */
import { ConnectRequest, ConnectResponse, type Desired, type DeviceInfo, type DeviceSpec, PROTOCOL_VERSION, type Reported } from '@moefleet/proto';
import { backoffMs } from '@moefleet/runtime';
import { randomBytes } from 'node:crypto';
import { type DesiredAnswers, NOTHING_REPORTED } from './desired-answers';
import type { FleetCounts } from './fleet-counts';
import { type CallEnd, GrpcCall, type Target } from './grpc-stream';
import type { Recording } from './recording';
import { Replay } from './recording';
import type { TickWheel } from './tick-wheel';

const PATH = '/moefleet.v1.AgentService/Connect';
/** As edge-agent's session has them. */
const WELCOME_TIMEOUT_MS = 30_000;
const SETTLED_MS = 5_000;
const BACKOFF = { baseMs: 500, maxMs: 30_000 };
const REFUSED_WAIT_MS = 30_000;
/** INVALID_ARGUMENT, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION, UNIMPLEMENTED, UNAUTHENTICATED: a person has to lift them. */
const REFUSALS: readonly number[] = [3, 6, 7, 9, 12, 16];

type State =
  | { t: 'idle' }
  | { t: 'connecting'; call: GrpcCall; cancel: () => void }
  | { t: 'open'; call: GrpcCall; sinceMs: number; intervalMs: number; cancel: () => void }
  | { t: 'waiting'; cancel: () => void };

export interface HollowAgentOptions {
  id: string;
  /** where to dial; asked at each attempt */
  target: () => Target;
  /** Nobody listens there. */
  onRefused: (target: Target) => void;
  recording: Recording;
  wheel: TickWheel;
  counts: FleetCounts;
  answers: DesiredAnswers;
  /** A spec has been applied, and the coordinator told so. */
  onApplied: (spec: DeviceSpec, generation: bigint) => void;
  random?: () => number;
}

export class HollowAgent {
  readonly installId: string;
  private bootId = '';
  private replay: Replay;
  private state: State = { t: 'idle' };
  private attempt = 0;
  /** its certificate has been taken once */
  private presented = false;
  private reported: Reported = NOTHING_REPORTED;
  /** decoded tokens that its frames have told of, in boots before this one and in this */
  private tokens = { before: 0n, now: 0n };
  private silent = false;

  constructor(private readonly options: HollowAgentOptions) {
    this.installId = `install-${options.id}`;
    this.replay = this.boot();
  }

  get id(): string { return this.options.id; }
  get open(): boolean { return this.state.t === 'open'; }
  /** For how long it has had its stream; -1: it has none. */
  get openMs(): number { return this.state.t === 'open' ? Date.now() - this.state.sinceMs : -1; }
  get generation(): bigint { return this.reported.appliedGeneration; }

  /** Of all its boots, as its latest frames tell. */
  get tokensTold(): bigint { return this.tokens.before + this.tokens.now; }

  /** One more frame, which makes up for all that were lost, and no other. */
  hush(): void {
    if (this.state.t === 'open') this.sendTelemetry(this.state.call);
    this.silent = true;
  }

  /** Whether it leaves its frames out; the next tells of all that it would have. */
  quiet(on: boolean): void {
    this.silent = on;
  }

  start(): void {
    this.dial();
  }

  stop(): void {
    this.transition({ t: 'idle' });
  }

  /** The process dies and comes back: a new boot, the spec it applied last kept as on disk. */
  reboot(): void {
    this.replay = this.boot();
    this.transition({ t: 'idle' });
    this.dial();
  }

  /** Leaves its stream as it is, never to be read or written again, and dials anew: a reset without a farewell. Gives the stream that hangs. */
  abandon(): GrpcCall | null {
    if (this.state.t !== 'open') return null;
    const { call, cancel } = this.state;
    cancel();
    this.options.counts.open -= 1;
    this.state = { t: 'idle' };
    this.replay = this.boot();
    this.dial();
    return call;
  }

  /** Reads nothing more of what the coordinator sends, or goes on reading. */
  read(on: boolean): void {
    if (this.state.t !== 'open') return;
    if (on) this.state.call.resume();
    else this.state.call.pause();
  }

  private boot(): Replay {
    this.tokens = { before: this.tokensTold, now: 0n };
    this.bootId = `boot-${randomBytes(6).toString('hex')}`;
    return new Replay(this.options.recording, randomBytes(2).readUInt16BE());
  }

  private dial(): void {
    const { counts, wheel } = this.options;
    counts.dials += 1;
    const target = this.options.target();
    const call: GrpcCall = new GrpcCall(target, PATH, {
      connected: (tls) => {
        if (tls) {
          counts.tlsHandshakes += 1;
          counts.tlsSessions += 1;
          tls.once('close', () => { counts.tlsSessions -= 1; });
          if (!this.presented) counts.certificates += 1;
          this.presented = true;
        }
        this.send(call, { $case: 'hello', value: {
          deviceId: this.id, installId: this.installId, bootId: this.bootId, protocolVersion: PROTOCOL_VERSION, info: this.info(), reported: this.reported,
        } });
      },
      message: (bytes) => this.receive(call, ConnectResponse.decode(bytes)),
      end: (end) => {
        if (end.details.includes('ECONNREFUSED')) this.options.onRefused(target);
        this.lost(call, end);
      },
    });
    const late = wheel.after(WELCOME_TIMEOUT_MS, () => this.lost(call, { code: 4, details: 'no welcome', retryAfterMs: null }));
    this.transition({ t: 'connecting', call, cancel: late });
  }

  private info(): DeviceInfo {
    return { ...this.options.recording.info, hostname: this.id };
  }

  private send(call: GrpcCall, body: NonNullable<ConnectRequest['body']>): void {
    call.write(ConnectRequest.encode({ body }).finish());
    this.options.counts.sent += 1;
  }

  private receive(call: GrpcCall, { body }: ConnectResponse): void {
    const { state } = this;
    if ((state.t !== 'connecting' && state.t !== 'open') || state.call !== call || !body) return;
    this.options.counts.received += 1;
    switch (body.$case) {
      case 'welcome': return this.welcomed(call, body.value.telemetryIntervalMs);
      case 'desired': return this.apply(call, body.value);
      case 'reportFullState': return this.reportAll(call);
      case 'task': return this.send(call, { $case: 'taskUpdate', value: { taskId: body.value.taskId, state: { $case: 'failed', value: { reason: 'a hollow agent has no engine to measure' } } } });
    }
  }

  private welcomed(call: GrpcCall, intervalMs: number): void {
    if (this.state.t !== 'connecting') return;
    const { wheel, counts } = this.options;
    counts.welcomes += 1;
    this.transition({ t: 'open', call, sinceMs: Date.now(), intervalMs, cancel: () => {} });
    this.reportAll(call);
    // Agents that came together shall not report together for ever.
    this.nextTelemetry(call, wheel, this.random() * intervalMs);
  }

  private nextTelemetry(call: GrpcCall, wheel: TickWheel, waitMs: number): void {
    const { state } = this;
    if (state.t !== 'open' || state.call !== call) return;
    state.cancel = wheel.after(waitMs, () => {
      this.sendTelemetry(call);
      this.nextTelemetry(call, wheel, state.intervalMs);
    });
  }

  private reportAll(call: GrpcCall): void {
    this.send(call, { $case: 'info', value: this.info() });
    this.send(call, { $case: 'reported', value: this.reported });
    this.sendTelemetry(call);
  }

  /** Where the last one still waits to be read, this one is left out: a newer one will say more. */
  private sendTelemetry(call: GrpcCall): void {
    if (this.silent) return;
    if (call.congested) {
      this.options.counts.framesHeld += 1;
      return;
    }
    const frame = this.replay.next(Date.now());
    this.tokens.now = frame.decodeTokens;
    this.send(call, { $case: 'telemetry', value: frame });
    this.options.counts.framesSent += 1;
  }

  private apply(call: GrpcCall, { generation, spec }: Desired): void {
    const { counts, answers, recording } = this.options;
    counts.desiredReceived += 1;
    const answer = answers.of(this.reported, generation, spec, recording.info.limits);
    for (const said of [answer.applying, answer.applied]) call.write(said);
    counts.sent += 2;
    this.reported = answer.reported;
    counts.applied += 1;
    this.options.onApplied(answer.decoded, generation);
  }

  private lost(call: GrpcCall, end: CallEnd): void {
    const { state } = this;
    if ((state.t !== 'connecting' && state.t !== 'open') || state.call !== call) return;
    if (state.t === 'open' && Date.now() - state.sinceMs > SETTLED_MS) this.attempt = 0;
    this.options.counts.note(end);
    const jitteredMs = backoffMs(this.attempt, { ...BACKOFF, random: () => this.random() });
    const asked = end.retryAfterMs !== null && end.retryAfterMs > 0 ? end.retryAfterMs : REFUSALS.includes(end.code) ? REFUSED_WAIT_MS : 0;
    this.attempt += 1;
    this.transition({ t: 'waiting', cancel: this.options.wheel.after(Math.max(asked * (1 + this.random() / 5), jitteredMs), () => this.dial()) });
  }

  private random(): number {
    return (this.options.random ?? Math.random)();
  }

  private transition(to: State): void {
    const from = this.state;
    this.state = to;
    if (from.t === 'open') this.options.counts.open -= 1;
    if (to.t === 'open') this.options.counts.open += 1;
    if (from.t === 'idle') return;
    from.cancel();
    if ((from.t === 'connecting' || from.t === 'open') && !('call' in to && to.call === from.call)) from.call.destroy();
  }
}
