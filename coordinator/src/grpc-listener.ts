/** A gRPC server that listens on one address and stops within a moment. */
import { type ConnectionInjector, Server, ServerCredentials, type ServerOptions, type ServiceDefinition, type UntypedServiceImplementation } from '@grpc/grpc-js';
import type { Socket } from 'node:net';
import { formatAddress, type ListenAddress } from '@moefleet/runtime';
import { bearMalformed } from './malformed-request';
import { TcpListener } from './tcp-listener';

/** After it, calls that have not ended are cut. */
const STOP_GRACE_MS = 1000;

/** Decides which connections get in, and when. */
export interface Gate {
  /** accepted, and paused */
  offer(socket: Socket): void;
  close(): void;
}

export class GrpcListener {
  readonly server: Server;
  private readonly tcp: TcpListener;
  private readonly gate: Gate;
  private injector: ConnectionInjector | null = null;
  private bound: string | null = null;

  /**
   * `credentials` is asked when it begins to listen; `config.ts` has refused addresses for which plaintext is not good
   * enough. `gate` is given what takes a connection in; without one each is taken at once.
   */
  constructor(private readonly address: ListenAddress, options: ServerOptions, private readonly credentials: () => ServerCredentials = ServerCredentials.createInsecure,
    gate: (admit: (socket: Socket) => void) => Gate = (admit) => ({ offer: admit, close() {} })) {
    this.server = new Server(options);
    this.gate = gate((socket) => this.admit(socket));
    this.tcp = new TcpListener((socket) => this.gate.offer(socket));
  }

  /** host:port that it listens on; throws before `listen`. */
  get boundAddress(): string {
    if (this.bound === null) throw new Error('not listening yet');
    return this.bound;
  }

  /** Of bytes that are no request, a call learns so. */
  serve<T extends UntypedServiceImplementation>(service: ServiceDefinition<T>, handlers: T): void {
    const { definition, implementation } = bearMalformed(service, handlers);
    this.server.addService(definition, implementation);
  }

  async listen(): Promise<void> {
    const { host, port } = this.address;
    this.injector = this.server.createConnectionInjector(this.credentials());
    try {
      this.bound = formatAddress(host, await this.tcp.listen(this.address));
    } catch (error) {
      throw new Error(`cannot listen on ${formatAddress(host, port)}: ${(error as Error).message}; is another coordinator running there?`, { cause: error });
    }
  }

  /** Accepts no more, sends GOAWAY, waits a moment for open calls, cuts the rest. */
  async close(): Promise<void> {
    this.tcp.close();
    this.gate.close();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => {
        this.injector?.drain(0);
        this.server.forceShutdown();
        resolve();
      }, STOP_GRACE_MS);
      this.server.tryShutdown(() => { clearTimeout(timer); resolve(); });
    });
  }

  /** What has been read of it already is taken from there; resumed it would be lost. */
  private admit(socket: Socket): void {
    this.injector!.injectConnection(socket);
    if (socket.readableLength === 0) socket.resume();
  }
}
