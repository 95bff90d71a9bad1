/** Listens on every address a host has, on one port, and hands out connections before anything is read of them. */
import { lookup } from 'node:dns/promises';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { ListenAddress } from '@moefleet/runtime';

/** Of the kernel, for connections that are not accepted yet; it takes the lesser of this and its own bound (net.core.somaxconn). */
const BACKLOG = 4096;

export class TcpListener {
  private readonly servers: Server[] = [];

  /** `take` gets each connection, paused. */
  constructor(private readonly take: (socket: Socket) => void) {}

  /** The port. Throws where none of the addresses can be listened on. */
  async listen({ host, port }: ListenAddress): Promise<number> {
    let bound = port;
    let failure: unknown;
    for (const { address } of await lookup(host, { all: true })) {
      try {
        bound = await this.listenOn(address, bound);
      } catch (error) {
        failure ??= error;
      }
    }
    if (this.servers.length === 0) throw failure;
    return bound;
  }

  /** Accepts no more; what was handed out stays. */
  close(): void {
    for (const server of this.servers) server.close();
  }

  private async listenOn(host: string, port: number): Promise<number> {
    const server = createServer({ pauseOnConnect: true, noDelay: true }, this.take);
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen({ host, port, backlog: BACKLOG }, resolve));
    server.removeAllListeners('error').on('error', () => {});
    this.servers.push(server);
    return (server.address() as AddressInfo).port;
  }
}
