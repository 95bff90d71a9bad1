/**
 * A TCP relay whose connections can be frozen: both ends stay open and nothing passes any more, as when a device loses
 * its power or its radio. The kernel still answers for it, so that only the application can find out.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';

export class Relay {
  private readonly server: Server;
  private readonly pairs = new Set<[Socket, Socket]>();
  private readonly frozen = new Set<[Socket, Socket]>();

  constructor(private readonly target: () => { host: string; port: number }) {
    this.server = createServer((near) => this.take(near));
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    return (this.server.address() as { port: number }).port;
  }

  /** Everything that is connected now; what comes later passes. */
  freeze(): number {
    for (const pair of this.pairs) {
      for (const socket of pair) socket.unpipe().pause();
      this.frozen.add(pair);
    }
    const count = this.pairs.size;
    this.pairs.clear();
    return count;
  }

  /** Frozen connections that the other side still holds open. */
  get held(): number {
    return [...this.frozen].filter(([, far]) => !far.destroyed && !far.readableEnded).length;
  }

  close(): void {
    this.server.close();
    for (const pair of [...this.pairs, ...this.frozen]) for (const socket of pair) socket.destroy();
  }

  private take(near: Socket): void {
    const { host, port } = this.target();
    const far = connect(port, host);
    const pair: [Socket, Socket] = [near, far];
    this.pairs.add(pair);
    near.pipe(far);
    far.pipe(near);
    for (const socket of pair) {
      socket.on('error', () => {});
      socket.on('close', () => { for (const other of pair) other.destroy(); });
    }
  }
}
