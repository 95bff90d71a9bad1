/**
 * How fast new connections become TLS sessions: before hello nobody is known, and a handshake costs more than all that
 * follows. A token per connection, a bound on handshakes under way (so that a slow machine finds its own pace), and as many
 * connections that wait their turn as would get it while an agent has patience. The rest is reset at once, for next to nothing,
 * and comes back after a wait drawn by full jitter, each longer than the one before. So a fleet that comes at once is let in at
 * a steady rate, most of it by its first connection or its second. A machine that gets through fewer lets some wait in vain, and
 * resets them then: they come back sooner so than after many a reset.
 */
import type { Socket } from 'node:net';
import { TokenBucket } from './token-bucket';

export type ConnectionOutcome = 'admitted' | 'refused' | 'silent';

export interface ConnectionGateOptions {
  connectionsPerSecond: number;
  /** An agent gives up after thirty seconds; whoever waits is let in well before. */
  mostWaitMs?: number;
  /** From being let in to the first call; then the connection is cut. */
  silentMs?: number;
  /** milliseconds, never going back */
  now?: () => number;
}

interface Newcomer { socket: Socket; sinceMs: number; gone: () => void }

/** `said`: its first bytes, read while it waits so that one that leaves is noticed. */
interface Waiting { socket: Socket; sinceMs: number; said: Buffer[]; deaf: () => void }

const MOST_WAIT_MS = 20_000;
const SILENT_MS = 10_000;
/** More than an agent says before it has an answer; whoever says more is reset, or those that wait could fill the memory. */
const MOST_SAID_BYTES = 8 * 1024;
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
  private readonly mostWaitMs: number;
  private readonly mostWaiting: number;
  private readonly mostUnderWay: number;
  private readonly now: () => number;
  /** in order of arrival */
  private readonly queue = new Set<Waiting>();
  /** let in, no call yet; by address and port, in order of admission */
  private readonly silent = new Map<string, Newcomer>();
  private timer: NodeJS.Timeout | undefined;
  private sweptMs = 0;
  /** how late the event loop has been lately */
  private lateMs = 0;
  private closed = false;

  /** `admit` takes a connection over; `tell` counts what became of each. */
  constructor(private readonly options: ConnectionGateOptions, private readonly admit: (socket: Socket) => void, private readonly tell: (outcome: ConnectionOutcome) => void) {
    const { connectionsPerSecond } = options;
    this.mostWaitMs = options.mostWaitMs ?? MOST_WAIT_MS;
    this.mostWaiting = Math.max(1, Math.floor(connectionsPerSecond * this.mostWaitMs / 1000));
    this.now = options.now ?? (() => performance.now());
    this.bucket = new TokenBucket(connectionsPerSecond, connectionsPerSecond, this.now);
    this.mostUnderWay = Math.max(1, Math.ceil(connectionsPerSecond * UNDER_WAY_SHARE));
  }

  get waiting(): number {
    return this.queue.size;
  }

  /** `socket` has been accepted and is paused. */
  offer(socket: Socket): void {
    socket.on('error', noError);
    if (this.closed || this.queue.size >= this.mostWaiting) return this.refuse(socket);
    if (this.queue.size === 0 && this.mayEnter()) return this.letIn(socket);
    this.wait(socket);
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
    for (const { socket } of this.queue) socket.resetAndDestroy();
    this.queue.clear();
    for (const { socket } of [...this.silent.values()]) socket.destroy();
    this.silent.clear();
  }

  private wait(socket: Socket): void {
    const waiting: Waiting = { socket, sinceMs: this.now(), said: [], deaf: () => {} };
    let bytes = 0;
    const hear = (chunk: Buffer) => {
      waiting.said.push(chunk);
      bytes += chunk.length;
      if (bytes > MOST_SAID_BYTES) this.refuse(this.call(waiting));
    };
    const gone = () => {
      this.queue.delete(waiting);
      waiting.deaf();
      socket.destroy();
    };
    waiting.deaf = () => void socket.off('data', hear).off('end', gone).off('close', gone);
    this.queue.add(waiting);
    socket.on('data', hear).once('end', gone).once('close', gone).resume();
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

  /** Takes it out of the queue as it was: what it has said is still to be read. */
  private call(waiting: Waiting): Socket {
    const { socket, said } = waiting;
    this.queue.delete(waiting);
    waiting.deaf();
    socket.pause();
    if (said.length > 0) socket.unshift(Buffer.concat(said));
    return socket;
  }

  private letIn(socket: Socket): void {
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    const newcomer: Newcomer = { socket, sinceMs: this.now(), gone: () => {
      if (this.silent.get(peer) === newcomer) this.silent.delete(peer);
    } };
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
    const { silentMs = SILENT_MS } = this.options;
    const nowMs = this.now();
    for (const newcomer of this.silent.values()) {
      if (nowMs - newcomer.sinceMs < silentMs) break;
      this.tell('silent');
      newcomer.gone();
      newcomer.socket.destroy();
    }
    for (const waiting of this.queue) {
      if (nowMs - waiting.sinceMs <= this.mostWaitMs) break;
      this.refuse(this.call(waiting));
    }
    for (const waiting of this.queue) {
      if (!this.mayEnter()) break;
      this.letIn(this.call(waiting));
    }
    if (this.queue.size > 0 || this.silent.size > 0) return;
    clearInterval(this.timer);
    this.timer = undefined;
  }
}

function noError(): void {}
