/**
 * What devices fetch over HTTP(S): `GET` and `HEAD` of `/blobs/<sha256>`, with ranges. A blob never changes, so its hash is
 * its ETag. With TLS a certificate of the fleet is asked for in the handshake, and its device must be admitted. A reader
 * holds one part of a blob here; one that stands still or crawls is cut, and more than MOST_READERS at once come again.
 */
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { pipeline } from 'node:stream/promises';
import type { TLSSocket } from 'node:tls';
import { askedRange, type Logger, type Service } from '@moefleet/runtime';
import { type BlobStore, DamagedBlobError } from '../artifacts/blob-store';
import { BusyError, DeviceRefusedError, NoCertificateError, RegistryUnavailableError, StoreFailedError } from '../errors';
import type { FetchAdmission } from '../identity/fetch-admission';
import { peerDevice } from '../identity/peer-device';
import type { ServerCertificate } from '../identity/server-certificate';
import { formatAddress, type ListenAddress } from '@moefleet/runtime';
import type { Metrics } from '../metrics';

/** More would each be slower, and hold memory. */
const MOST_READERS = 200;
const MOST_CONNECTIONS = 4000;
const STANDSTILL_MS = 30_000;
/** With STANDSTILL_MS on top: a reader that is slower than this, a kilobyte a second, never gets to the end. */
const LEAST_BYTES_PER_MS = 1;
const HEADERS_WITHIN_MS = 10_000;
/** Longer than a device works on a chunk before it asks for the next. */
const IDLE_MS = 60_000;
/** Those that are turned away come again at times of their own. */
const RETRY_AFTER_S = { least: 1, spread: 4 };
const PATH = /^\/blobs\/([0-9a-f]{64})$/;

export interface BlobServerOptions {
  readonly address: ListenAddress;
  /** null: plaintext */
  readonly certificate: ServerCertificate | null;
  readonly mostReaders?: number;
  readonly standstillMs?: number;
  readonly now: () => number;
  /** in [0,1) */
  readonly random: () => number;
}

export interface BlobServerDeps { blobs: BlobStore; admission: FetchAdmission; metrics: Metrics; log: Logger }

export class BlobServer implements Service {
  readonly name = 'blobs';
  private server: Server | null = null;
  private readers = 0;
  private readonly mostReaders: number;
  private readonly standstillMs: number;

  constructor(private readonly options: BlobServerOptions, private readonly deps: BlobServerDeps) {
    this.mostReaders = options.mostReaders ?? MOST_READERS;
    this.standstillMs = options.standstillMs ?? STANDSTILL_MS;
  }

  /** null where nothing is served: no models are kept, or it has not started. */
  get port(): number | null {
    const bound = this.server?.address();
    return bound && typeof bound === 'object' ? bound.port : null;
  }

  get address(): string | null {
    return this.port === null ? null : formatAddress(this.options.address.host, this.port);
  }

  async start(): Promise<void> {
    if (!this.deps.blobs.kept) return;
    const { address: { host, port }, certificate } = this.options;
    const settings = { headersTimeout: HEADERS_WITHIN_MS, keepAliveTimeout: IDLE_MS, noDelay: true };
    const server = certificate ? createTlsServer({ ...settings, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' }, this.answer) : createServer(settings, this.answer);
    certificate?.follow((context) => (server as ReturnType<typeof createTlsServer>).setSecureContext(context));
    server.maxConnections = MOST_CONNECTIONS;
    server.setTimeout(this.standstillMs);
    server.on('tlsClientError', (error: Error) => this.deps.log.debug({ reason: error.message }, 'blob connection refused'));
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(new Error(`cannot listen on ${formatAddress(host, port)}: ${error.message}; is another coordinator running there? (--blob-listen)`, { cause: error })));
      server.listen(port, host, resolve);
    });
    this.server = server;
  }

  async stop(): Promise<void> {
    const { server } = this;
    if (!server?.listening) return;
    await new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  }

  private readonly answer: RequestListener = (request, response) => {
    this.serve(request, response).catch((error: unknown) => this.fail(request, response, error)).finally(() => {
      this.deps.metrics.blobRequests.inc({ code: String(response.statusCode) });
    });
  };

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'GET' && request.method !== 'HEAD') return say(response, 405, 'only GET and HEAD are served here', { allow: 'GET, HEAD' });
    const sha256 = PATH.exec(request.url?.split('?')[0] ?? '')?.[1];
    if (!sha256) return say(response, 404, 'here are /blobs/<64 hexadecimal digits>');
    if (this.options.certificate) await this.deps.admission.admit(peerDevice({ sslPeerCertificate: (request.socket as TLSSocket).getPeerCertificate() }, this.options.now()));
    const size = await this.deps.blobs.size(sha256);
    if (size === null) return say(response, 404, `there is no blob ${sha256}`);
    const etag = `"${sha256}"`;
    const headers = { etag, 'accept-ranges': 'bytes', 'cache-control': 'public, max-age=31536000, immutable' };
    if (request.headers['if-none-match'] === etag) return void response.writeHead(304, headers).end();
    const { 'if-range': ifRange, range } = request.headers;
    const asked = askedRange(ifRange === undefined || ifRange === etag ? range : undefined, size);
    if (asked.t === 'none of it') return say(response, 416, `the blob has ${size} bytes`, { 'content-range': `bytes */${size}` });
    const { start, end } = asked.t === 'part' ? asked.range : { start: 0, end: size - 1 };
    const head = { ...headers, 'content-type': 'application/octet-stream', 'content-length': end - start + 1, ...(asked.t === 'part' ? { 'content-range': `bytes ${start}-${end}/${size}` } : {}) };
    if (request.method === 'HEAD') return void response.writeHead(asked.t === 'part' ? 206 : 200, head).end();
    await this.send(response, sha256, asked.t === 'part' ? { start, end } : undefined, () => response.writeHead(asked.t === 'part' ? 206 : 200, head), end - start + 1);
  }

  private async send(response: ServerResponse, sha256: string, range: { start: number; end: number } | undefined, begin: () => void, bytes: number): Promise<void> {
    if (this.readers >= this.mostReaders) throw new BusyError(`${this.mostReaders} devices fetch from here already; come again`);
    this.readers += 1;
    const late = setTimeout(() => response.destroy(), this.standstillMs + bytes / LEAST_BYTES_PER_MS);
    try {
      const stream = await this.deps.blobs.read(sha256, range);
      if (!stream) return say(response, 404, `there is no blob ${sha256}`);
      begin();
      const { blobBytes } = this.deps.metrics;
      await pipeline(stream, async function* (parts: AsyncIterable<Buffer>) {
        for await (const part of parts) {
          blobBytes.inc(part.length);
          yield part;
        }
      }, response);
    } finally {
      clearTimeout(late);
      this.readers -= 1;
    }
  }

  private fail(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    const { log } = this.deps;
    if (error instanceof DamagedBlobError) log.error({ sha256: error.sha256 }, error.message);
    if (response.headersSent || response.destroyed) return void response.destroy();
    const again = { 'retry-after': RETRY_AFTER_S.least + Math.floor(this.options.random() * RETRY_AFTER_S.spread) };
    if (error instanceof NoCertificateError || error instanceof DeviceRefusedError) return say(response, 403, error.message);
    if (error instanceof BusyError || error instanceof RegistryUnavailableError) return say(response, 503, error.message, again);
    log.error({ err: error, path: request.url }, 'blob cannot be served');
    say(response, error instanceof StoreFailedError ? 503 : 500, error instanceof StoreFailedError ? error.message : 'the coordinator\'s log has the reason', again);
  }
}

function say(response: ServerResponse, code: number, text: string, headers: Record<string, string | number> = {}): void {
  response.writeHead(code, { 'content-type': 'text/plain', 'cache-control': 'no-store', ...headers }).end(`${text}\n`);
}
