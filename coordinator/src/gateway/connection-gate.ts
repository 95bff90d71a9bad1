/**
 * How fast new connections become TLS sessions: before hello nobody is known, and a handshake costs more than all that
 * follows. A token per connection, a bound on handshakes under way (so that a slow machine finds its own pace), some
 * connections that wait unread, for no longer than an agent has patience, and the rest is reset at once, for next to
 * nothing. An agent that was reset comes back after a wait drawn by full jitter, each longer than the one before; so a
 * fleet that comes at once is let in at a steady rate instead of everybody missing the deadline again and again.
 */
import type { Socket } from 'node:net';
import { TokenBucket } from './token-bucket';

export type ConnectionOutcome = 'admitted' | 'refused' | 'silent';

export interface ConnectionGateOptions {
  connectionsPerSecond: number;
  /** An agent gives up after ten seconds; whoever waits is let in well before. */
  mostWaitMs?: number;
  /** From being let in to the first call; then the connection is cut. */
  silentMs?: number;
  /** milliseconds, never going back */
  now?: () => number;
}

interface Newcomer { socket: Socket; sinceMs: number; gone: () => void }

const MOST_WAIT_MS = 4000;
/** An agent's own deadline for its welcome. */
const SILENT_MS = 10_000;
/** Of the connections per second, those that may be under way at once: a quarter of a second each where nothing is short, and where the processor is, no more than it gets through well before agents lose patience. */
const UNDER_WAY_SHARE = 1 / 4;
/** Older ones count no longer as under way, or a few mute connections would keep everybody out. */
const HANDSHAKE_MS = 1000;
const SWEEP_EVERY_MS = 20;
/**
 * So late the event loop is where half as many may be under way. On a machine that gets through fewer than it is asked handshakes
 * take longer than a second and count no more; were as many begun as ever, more and more would be under way, until all miss
 * their deadline.
 */
const LATE_MS = 250;
/** What is left of how late it was, per sweep. */
const LATE_DECAY = 0.95;

export class ConnectionGate {
  private readonly bucket: TokenBucket;
  private readonly mostWaiting: number;
  private readonly mostUnderWay: number;
  private readonly now: () => number;
  /** paused, in order of arrival */
  private readonly queue: Newcomer[] = [];
  /** let in, no call yet; by address and port, in order of admission */
  private readonly silent = new Map<string, Newcomer>();
  private timer: NodeJS.Timeout | undefined;
  private sweptMs = 0;
  /** how late the event loop has been lately */
  private lateMs = 0;
  private closed = false;

  /** `admit` takes a connection over; `tell` counts what became of each. */
  constructor(private readonly options: ConnectionGateOptions, private readonly admit: (socket: Socket) => void, private readonly tell: (outcome: ConnectionOutcome) => void) {
    const { connectionsPerSecond, mostWaitMs = MOST_WAIT_MS } = options;
    this.now = options.now ?? (() => performance.now());
    this.bucket = new TokenBucket(connectionsPerSecond, connectionsPerSecond, this.now);
    this.mostUnderWay = Math.max(1, Math.ceil(connectionsPerSecond * UNDER_WAY_SHARE));
    this.mostWaiting = Math.max(1, Math.floor(connectionsPerSecond * mostWaitMs / 1000));
  }

  get waiting(): number {
    return this.queue.length;
  }

  /** `socket` has been accepted and is paused. */
  offer(socket: Socket): void {
    socket.on('error', noError);
    if (this.closed || this.queue.length >= this.mostWaiting) return this.refuse(socket);
    const newcomer: Newcomer = { socket, sinceMs: this.now(), gone: () => {} };
    if (this.queue.length === 0 && this.mayEnter()) return this.letIn(newcomer);
    this.queue.push(newcomer);
    this.watch();
  }

  /** The connection from `peer` (address:port) has opened a call. */
  called(peer: string): void {
    const newcomer = this.silent.get(peer);
    if (!newcomer) return;
    this.silent.delete(peer);
    newcomer.socket.off('close', newcomer.gone);
    this.sweep();
  }

  /** Resets whoever waits, and from now on everybody. */
  close(): void {
    this.closed = true;
    clearInterval(this.timer);
    for (const { socket } of this.queue.splice(0)) socket.resetAndDestroy();
    for (const { socket } of [...this.silent.values()]) socket.destroy();
    this.silent.clear();
  }

  private mayEnter(): boolean {
    return this.underWay() < this.mostUnderWay / (1 + this.lateMs / LATE_MS) && this.bucket.take(1);
  }

  /** Handshakes under way: the newest of the silent ones. */
  private underWay(): number {
    if (this.silent.size < this.mostUnderWay) return this.silent.size;
    const sinceMs = this.now() - HANDSHAKE_MS;
    let old = 0;
    for (const newcomer of this.silent.values()) {
      if (newcomer.sinceMs > sinceMs) break;
      old += 1;
    }
    return this.silent.size - old;
  }

  private letIn(newcomer: Newcomer): void {
    const { socket } = newcomer;
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    newcomer.sinceMs = this.now();
    newcomer.gone = () => {
      if (this.silent.get(peer) === newcomer) this.silent.delete(peer);
    };
    socket.once('close', newcomer.gone);
    this.silent.set(peer, newcomer);
    this.tell('admitted');
    socket.off('error', noError);
    this.admit(socket);
    this.watch();
  }

  private refuse(socket: Socket): void {
    this.tell('refused');
    socket.resetAndDestroy();
  }

  private watch(): void {
    if (this.timer) return;
    this.sweptMs = this.now();
    this.timer = setInterval(() => {
      const nowMs = this.now();
      this.lateMs = Math.max(nowMs - this.sweptMs - SWEEP_EVERY_MS, this.lateMs * LATE_DECAY);
      this.sweptMs = nowMs;
      this.sweep();
    }, SWEEP_EVERY_MS);
  }

  private sweep(): void {
    const { mostWaitMs = MOST_WAIT_MS, silentMs = SILENT_MS } = this.options;
    const nowMs = this.now();
    for (const newcomer of this.silent.values()) {
      if (nowMs - newcomer.sinceMs < silentMs) break;
      this.tell('silent');
      newcomer.gone();
      newcomer.socket.destroy();
    }
    let late = 0;
    while (late < this.queue.length && nowMs - this.queue[late]!.sinceMs > mostWaitMs) late += 1;
    for (const { socket } of this.queue.splice(0, late)) this.refuse(socket);
    while (this.queue.length > 0 && this.mayEnter()) this.letIn(this.queue.shift()!);
    if (this.queue.length > 0 || this.silent.size > 0) return;
    clearInterval(this.timer);
    this.timer = undefined;
  }
}

function noError(): void {}
