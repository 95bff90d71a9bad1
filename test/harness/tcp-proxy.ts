/** A TCP proxy that can be made to fail: delay, cut, hold, or swallow what passes while connections stay open. */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { once } from 'node:events';

export class TcpProxy {
  /** milliseconds added to what passes, each way */
  delayMs = 0;
  /** Nothing passes and nothing is closed: as a cable that was pulled. */
  blackhole = false;
  /** An end that closes is not told to the other: as a machine that has lost its power. */
  silent = false;
  private readonly sockets = new Set<Socket>();
  private holding = false;
  private readonly server: Server;

  /** `target` may change: connections made later go to the new one. */
  constructor(public target: { host: string; port: number }) {
    this.server = createServer((near) => this.join(near));
  }

  get address(): string {
    const bound = this.server.address();
    if (bound === null || typeof bound === 'string') throw new Error('not listening yet');
    return `127.0.0.1:${bound.port}`;
  }

  async start(): Promise<this> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return this;
  }

  /** Nothing passes until it is let go; then all of it does, in order. */
  set held(held: boolean) {
    this.holding = held;
    for (const socket of this.sockets) {
      if (held) socket.pause();
      else socket.resume();
    }
  }

  /** Ends every connection at once; new ones are taken. */
  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.cut();
    await closed;
  }

  private join(near: Socket): void {
    const far = connect(this.target);
    for (const [from, to] of [[near, far], [far, near]] as const) {
      this.sockets.add(from);
      if (this.holding) from.pause();
      from.on('data', (bytes) => {
        if (this.blackhole) return;
        if (this.delayMs === 0) to.write(bytes);
        else setTimeout(() => { if (!to.destroyed) to.write(bytes); }, this.delayMs);
      });
      from.on('error', () => {});
      from.on('close', () => {
        this.sockets.delete(from);
        if (!this.silent) to.destroy();
      });
    }
  }
}
