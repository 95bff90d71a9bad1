/** A gRPC server that listens on one address and stops within a moment. */
import { Server, ServerCredentials, type ServerOptions } from '@grpc/grpc-js';
import { formatAddress, type ListenAddress } from './listen-address';

/** After it, calls that have not ended are cut. */
const STOP_GRACE_MS = 1000;

export class GrpcListener {
  readonly server: Server;
  private bound: string | null = null;

  /** `credentials` is asked when it begins to listen; `config.ts` has refused addresses for which plaintext is not good enough. */
  constructor(private readonly address: ListenAddress, options: ServerOptions, private readonly credentials: () => ServerCredentials = ServerCredentials.createInsecure) {
    this.server = new Server(options);
  }

  /** host:port that it listens on; throws before `listen`. */
  get boundAddress(): string {
    if (this.bound === null) throw new Error('not listening yet');
    return this.bound;
  }

  async listen(): Promise<void> {
    const { host, port } = this.address;
    const boundPort = await new Promise<number>((resolve, reject) => {
      this.server.bindAsync(formatAddress(host, port), this.credentials(), (error, got) => {
        if (error) reject(new Error(`cannot listen on ${formatAddress(host, port)}: ${error.message}; is another coordinator running there?`, { cause: error }));
        else resolve(got);
      });
    });
    this.bound = formatAddress(host, boundPort);
  }

  /** Sends GOAWAY, waits a moment for open calls, cuts the rest. */
  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => { this.server.forceShutdown(); resolve(); }, STOP_GRACE_MS);
      this.server.tryShutdown(() => { clearTimeout(timer); resolve(); });
    });
  }
}
