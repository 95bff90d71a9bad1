/** `/healthz` and `/metrics`. Whoever lacks Redis or a coordinator is alive, so it stays 200 and says what is missing. */
import { createServer, type RequestListener, type Server } from 'node:http';
import type { Service } from './lifecycle';
import { formatAddress, type ListenAddress } from './listen-address';

export interface HttpSources {
  /** `status` is 'ok', or 'degraded' where something is missing */
  health(): Record<string, string | number>;
  metrics(): Promise<{ contentType: string; text: string }>;
}

export class HttpServer implements Service {
  readonly name = 'http';
  private readonly server: Server;

  constructor(private readonly listenAddress: ListenAddress, private readonly sources: HttpSources) {
    this.server = createServer(this.answer);
  }

  get address(): string {
    const bound = this.server.address();
    if (bound === null || typeof bound === 'string') throw new Error('not listening yet');
    return formatAddress(this.listenAddress.host, bound.port);
  }

  async start(): Promise<void> {
    const { host, port } = this.listenAddress;
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', (error) => reject(new Error(`cannot listen on ${formatAddress(host, port)}: ${error.message}; does another program listen there?`, { cause: error })));
      this.server.listen(port, host, resolve);
    });
  }

  async stop(): Promise<void> {
    if (!this.server.listening) return;
    await new Promise<void>((resolve) => {
      this.server.close(() => resolve());
      this.server.closeAllConnections();
    });
  }

  private readonly answer: RequestListener = (request, response) => {
    const path = request.url?.split('?')[0];
    const send = (code: number, contentType: string, body: string) => {
      response.writeHead(code, { 'content-type': contentType, 'cache-control': 'no-store' }).end(body);
    };
    if (request.method !== 'GET' && request.method !== 'HEAD') return send(405, 'text/plain', 'only GET is served here\n');
    if (path === '/healthz') return send(200, 'application/json', JSON.stringify(this.sources.health()));
    if (path !== '/metrics') return send(404, 'text/plain', 'here are /healthz and /metrics\n');
    this.sources.metrics().then(({ contentType, text }) => send(200, contentType, text), () => send(500, 'text/plain', 'metrics cannot be read\n'));
  };
}
