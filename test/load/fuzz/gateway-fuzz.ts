/**
 * Hostile peers against a fresh coordinator beside a few honest agents: damaged messages, wrong order, other devices'
 * ids, broken framing, bytes that are no HTTP/2, damaged operator calls. Afterwards the coordinator is up, has not
 * grown, and the honest agents have noticed nothing.
 */
import { ChangeConfigRequest } from '@moefleet/proto';
import { type ClientHttp2Session, connect as http2Connect } from 'node:http2';
import { connect as tcpConnect } from 'node:net';
import { connect as tlsConnect } from 'node:tls';
import { setTimeout as sleep } from 'node:timers/promises';
import { makeCertificates } from '../hollow-fleet/certificates';
import { HollowFleet, RECORDING_PATH } from '../hollow-fleet/hollow-fleet';
import type { ClientTls } from '../hollow-fleet/grpc-stream';
import { readRecording, type Recording } from '../hollow-fleet/recording';
import { residentBytes } from '../process-usage';
import type { Progress } from '../progress';
import { Stage } from '../stage';
import { type Attempt, HostileIdentities } from './hostile-identity';
import { helloOf, hostileMessage, validMessages } from './hostile-message';
import { Random } from './random';
import { Trespass } from './trespass';

export interface FuzzOptions { messages: number; seed: number; tls: boolean }

export interface FuzzFigures {
  messages: number;
  calls: number;
  connections: number;
  seconds: number;
  seed: number;
  serverUp: boolean;
  /** resident set of the coordinator after each tenth of the messages, and two seconds after the last */
  rssBytes: number[];
  /** honest agents, those still on their first stream, and those that applied a change made afterwards */
  honest: number;
  undisturbed: number;
  acknowledged: number;
  /** calls with what is another's (an honest device's id, a certificate, a token), and those of them that were let in, in words */
  intrusions: number;
  letIn: string[];
  /** of a token that attempts have used too: devices that it let in at the end, and its uses; null: plaintext */
  enrolled: { letIn: number; uses: number } | null;
  /** who is in the fleet afterwards and should not be, in words */
  trespassers: string[];
  /** gRPC statuses that calls ended with; `none`: the connection broke */
  statuses: Record<string, number>;
  /** what calls that ended with INTERNAL were told, the ten most frequent */
  internal: Record<string, number>;
}

const HONEST = 8;
const PEERS = 32;
const MESSAGES_PER_CALL = 12;
const IDS = 64;
const CALL_TIMEOUT_MS = 5_000;
/** Node closes a stream within it, or never: one whose connection ended before it was up. */
const CLOSE_TIMEOUT_MS = 1_000;
const AGENT_PATH = '/moefleet.v1.AgentService/Connect';
const OPERATOR_PATHS = ['ListDevices', 'GetDevice', 'GetRollout', 'MeasureDevice', 'GetLearner'].map((name) => `/moefleet.v1.OperatorService/${name}`);
const LAMBDA = 0.31;
const TENTHS = 10;
const OK = '0';
const ATTEMPTS_PER_TURN = 25;
const INTERNAL = '13';

export class GatewayFuzz {
  private readonly stage: Stage;
  private readonly random: Random;
  private readonly recording: Recording = readRecording(RECORDING_PATH);
  private readonly valid = validMessages(this.recording);
  private fleet: HollowFleet | null = null;
  private certificates = new Map<string, ClientTls>();
  private sent = 0;
  private calls = 0;
  private connections = 0;
  private intrusions = 0;
  private readonly letIn: string[] = [];
  private hostile: HostileIdentities | null = null;
  private readonly statuses: Record<string, number> = {};
  private readonly internal = new Map<string, number>();
  private stopping: Promise<void> | null = null;

  constructor(private readonly options: FuzzOptions, private readonly progress: Progress) {
    this.stage = new Stage({ telemetryIntervalMs: 1000, nodeFlags: [], tls: options.tls });
    this.random = new Random(options.seed);
  }

  async run(): Promise<FuzzFigures> {
    const { stage, options } = this;
    await stage.startRedis();
    await stage.startAuthority();
    const coordinator = await stage.startCoordinator();
    const fleet = new HollowFleet({ agents: HONEST, perSecond: 100, gateways: [coordinator.gateway], tlsFolder: stage.tlsFolder });
    this.fleet = fleet;
    await fleet.start();
    while ((await fleet.figures()).open < HONEST) await sleep(50);
    if (stage.tlsFolder) {
      const ids = Array.from({ length: IDS }, (_, at) => ({ id: `fuzz-${at}`, installId: `install-fuzz-${at}` }));
      this.certificates = await makeCertificates(stage.tlsFolder, ids);
      this.hostile = new HostileIdentities(stage.tlsFolder, coordinator.identities, this.random, (id, installId) => helloOf(id, installId, this.recording));
      await this.hostile.prepare('hollow-0', (attempt) => this.attempt(attempt));
    }
    const trespass = new Trespass({
      redisUrl: stage.redisUrl, prefix: stage.prefix, operator: coordinator.operator,
      honest: new Map(Array.from({ length: HONEST }, (_, at) => [`hollow-${at}`, `install-hollow-${at}`])),
      mayBe: (id) => !stage.tlsFolder || /^(hollow|fuzz)-\d+$/.test(id),
    });
    await trespass.remember();
    const begunMs = Date.now();
    const rssBytes: number[] = [];
    for (let tenth = 1; tenth <= TENTHS; tenth += 1) {
      await this.attack(options.messages * tenth / TENTHS);
      rssBytes.push(residentBytes(coordinator.pid));
      this.progress.step(`${this.sent} messages: the coordinator's resident set is ${mib(rssBytes.at(-1)!)} MiB`);
    }
    const seconds = (Date.now() - begunMs) / 1000;
    // What was begun ends; nothing is collected by force.
    await sleep(2000);
    const serverUp = !coordinator.child.ended && (await coordinator.metric('streams')).size > 0;
    if (serverUp) rssBytes.push(residentBytes(coordinator.pid));
    const enrolled = serverUp && this.hostile ? await this.hostile.useUp((attempt) => this.attempt(attempt)) : null;
    const trespassers = serverUp ? await trespass.found() : [];
    const acknowledged = serverUp ? await this.pushTo(fleet) : 0;
    const figures = await fleet.figures();
    return {
      messages: this.sent, calls: this.calls, connections: this.connections, seconds, seed: options.seed, serverUp, rssBytes,
      honest: HONEST, undisturbed: HONEST - (figures.welcomes - HONEST) - (HONEST - figures.open), acknowledged, intrusions: this.intrusions, letIn: this.letIn.slice(0, 20), enrolled, trespassers, statuses: this.statuses,
      internal: Object.fromEntries([...this.internal].sort(([, a], [, b]) => b - a).slice(0, 10)),
    };
  }

  stop(): Promise<void> {
    this.stopping ??= (async () => {
      await this.fleet?.stop();
      await this.stage.stop();
    })();
    return this.stopping;
  }

  private async attack(until: number): Promise<void> {
    const peer = async (at: number) => {
      while (this.sent < until) {
        if (this.stage.coordinators[0]!.child.ended) throw new Error(`the coordinator has ended; seed ${this.options.seed}:\n${this.stage.coordinators[0]!.child.log().slice(-2000)}`);
        const chance = this.random.next();
        if (chance < 0.02) await this.garbage();
        else if (chance < 0.05) await this.operatorCalls();
        else if (chance < 0.2 && this.hostile) await this.identityCalls(this.hostile);
        else await this.agentCalls(at);
        this.progress.now(`${this.sent} of ${this.options.messages} messages`);
      }
    };
    await Promise.all(Array.from({ length: PEERS }, (_, at) => peer(at)));
  }

  /** Some calls over one connection. */
  private async agentCalls(peer: number): Promise<void> {
    const id = `fuzz-${(peer * 8 + this.random.below(8)) % IDS}`;
    const session = this.open(this.stage.coordinators[0]!.gateway.port, this.certificates.get(id) ?? null);
    for (let calls = 0; calls < 20 && !session.destroyed; calls += 1) {
      const foreign = this.random.next() < 0.05;
      if (foreign) this.intrusions += 1;
      const hello = foreign ? helloOf(`hollow-${this.random.below(HONEST)}`, 'install-thief', this.recording) : helloOf(id, `install-${id}`, this.recording);
      const messages: Buffer[] = this.random.next() < 0.7 ? [hello] : [];
      while (messages.length < MESSAGES_PER_CALL) messages.push(this.random.next() < 0.3 ? Buffer.from(this.random.of(this.valid)) : hostileMessage(this.valid, this.random));
      const { welcomed } = await this.call(session, AGENT_PATH, messages.map((message) => this.framed(message)));
      if (foreign && welcomed && messages[0] === hello) this.letIn.push('another installation under an honest device\'s id');
    }
    session.destroy();
  }

  /** Each over a connection of its own, for each has another certificate. */
  private async identityCalls(hostile: HostileIdentities): Promise<void> {
    for (let calls = 0; calls < ATTEMPTS_PER_TURN; calls += 1) {
      const attempt = hostile.next(`hollow-${this.random.below(HONEST)}`);
      this.intrusions += 1;
      if (await this.attempt(attempt) === OK && this.letIn.length < 1000) this.letIn.push(attempt.kind);
    }
  }

  /** Its status; `0` also for a stream that was welcomed. */
  private async attempt({ path, certificate, messages }: Attempt): Promise<string> {
    const session = this.open(this.stage.coordinators[0]!.gateway.port, certificate);
    this.sent += messages.length;
    const { welcomed, status } = await this.call(session, path, messages.map((message) => plainFrame(message)));
    session.destroy();
    return welcomed ? OK : status;
  }

  private async operatorCalls(): Promise<void> {
    const session = this.open(this.stage.operatorPort, null);
    for (let calls = 0; calls < 5 && !session.destroyed; calls += 1) {
      await this.call(session, this.random.of(OPERATOR_PATHS), [this.framed(this.random.next() < 0.5 ? this.random.bytes(this.random.below(200)) : hostileMessage(this.valid, this.random))]);
    }
    session.destroy();
  }

  /** Bytes that are no HTTP/2, or begin like it. */
  private async garbage(): Promise<void> {
    const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n000000040000000000'.slice(0, 24));
    const bytes = this.random.next() < 0.5 ? this.random.bytes(1 + this.random.below(2000)) : Buffer.concat([preface, this.random.bytes(this.random.below(2000))]);
    this.connections += 1;
    this.sent += 1;
    await new Promise<void>((resolve) => {
      const socket = tcpConnect(this.stage.coordinators[0]!.gateway.port, '127.0.0.1', () => socket.write(bytes));
      socket.on('data', () => {});
      socket.on('error', () => {});
      socket.on('close', () => resolve());
      setTimeout(() => socket.destroy(), 20 + this.random.below(100));
    });
  }

  /** Length-prefixed, seldom with a prefix that lies. */
  private framed(message: Buffer): Buffer {
    const prefix = Buffer.alloc(5);
    const chance = this.random.next();
    prefix.writeUInt8(chance < 0.01 ? this.random.below(256) : 0, 0);
    prefix.writeUInt32BE(chance > 0.99 ? this.random.of([0xffffffff, 2 * 1024 * 1024, message.length + 1, 0]) : message.length, 1);
    this.sent += 1;
    return Buffer.concat([prefix, message]);
  }

  private open(port: number, certificate: ClientTls | null): ClientHttp2Session {
    this.connections += 1;
    const tls = this.stage.tlsFolder !== null;
    const authority = `${tls ? 'https' : 'http'}://127.0.0.1:${port}`;
    const session = http2Connect(authority, tls ? { createConnection: () => tlsConnect({ host: '127.0.0.1', port, ALPNProtocols: ['h2'], rejectUnauthorized: false, ...(certificate ? { cert: certificate.cert, key: certificate.key } : {}) }) } : {});
    session.on('error', () => {});
    return session;
  }

  private call(session: ClientHttp2Session, path: string, frames: Buffer[]): Promise<{ welcomed: boolean; status: string }> {
    this.calls += 1;
    // The coordinator has said that it takes no more over this connection, or has ended it.
    if (session.closed || session.destroyed) return Promise.resolve({ welcomed: false, status: 'none' });
    return new Promise((resolve) => {
      let status = 'none';
      let welcomed = false;
      const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' });
      let over = false;
      const finish = () => {
        if (over) return;
        over = true;
        clearTimeout(timer);
        this.statuses[status] = (this.statuses[status] ?? 0) + 1;
        resolve({ welcomed, status });
      };
      let timer = setTimeout(() => {
        stream.close();
        timer = setTimeout(() => { session.destroy(); finish(); }, CLOSE_TIMEOUT_MS);
      }, CALL_TIMEOUT_MS);
      for (const event of ['response', 'trailers'] as const) stream.on(event, (headers: Record<string, unknown>) => {
        status = String(headers['grpc-status'] ?? status);
        if (status === INTERNAL) this.noteInternal(path, String(headers['grpc-message'] ?? ''));
      });
      stream.on('data', () => { welcomed = true; });
      stream.on('error', () => {});
      stream.on('close', finish);
      for (const frame of frames) stream.write(frame);
      stream.end();
    });
  }

  private noteInternal(path: string, message: string): void {
    const what = `${path.split('/').at(-1)!}: ${decodeURIComponent(message).replace(/\d+/g, 'N')}`;
    if (this.internal.size < 1000) this.internal.set(what, (this.internal.get(what) ?? 0) + 1);
  }

  /** A change to every device; how many honest ones have applied it. */
  private async pushTo(fleet: HollowFleet): Promise<number> {
    await fleet.expect(LAMBDA);
    const call = this.stage.coordinators[0]!.operator.changeConfig(ChangeConfigRequest.fromPartial({
      target: { kind: { $case: 'all', value: true } }, change: { $case: 'setLambda', value: { lambda: LAMBDA } }, why: 'after the fuzz', timeoutMs: 20_000,
    }));
    call.on('data', () => {});
    // Devices of the hostile peers never answer, so it is given up once the honest ones have.
    call.on('error', () => {});
    for (let waits = 0; waits < 200 && (await fleet.arrivals()).length < HONEST; waits += 1) await sleep(100);
    call.cancel();
    return (await fleet.arrivals()).length;
  }
}

/** Length-prefixed, as it should be. */
function plainFrame(message: Buffer): Buffer {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

function mib(bytes: number): string {
  return (bytes / 1024 / 1024).toFixed(0);
}
