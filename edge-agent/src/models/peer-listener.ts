/**
 * Serves chunks of models to devices beside this one, as a coordinator does: `GET /blobs/<sha256>` with ranges. With the fleet's
 * certificates only those get an answer that the coordinator has named; without, whoever reaches the address that was given for it.
 */
import { createReadStream } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { networkInterfaces } from 'node:os';
import { pipeline, Readable } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { askedRange, type Logger } from '@moefleet/runtime';
import { HELD_HEADER } from './blob-client';
import type { Holdings } from './holdings';

/** More would take the flash, and the processor, from the engine. */
const ANSWERS_AT_ONCE = 8;
const RETRY_AFTER_S = 1;
const MOST_CONNECTIONS = 256;
const SILENCE_MS = 60_000;
const READ_BYTES = 256 * 1024;

/** PEM */
export interface ServerIdentity { readonly ca: string; readonly key: string; readonly cert: string; }

export interface PeerListenerOptions {
  /** `host` null: all interfaces */
  listen: { host: string | null; port: number };
  holdings: Holdings;
  /** whether the coordinator has named this device */
  isNamed: (deviceId: string) => boolean;
  log: Logger;
}

export class PeerListener {
  private server: Server | TlsServer | null = null;
  private answering = 0;
  private sent = 0;

  constructor(private readonly options: PeerListenerOptions) {}

  /** null while it is not open */
  get port(): number | null {
    const address = this.server?.address() as AddressInfo | null | undefined;
    return address?.port ?? null;
  }

  /** Bytes of chunks, since it was made. */
  get bytesSent(): number {
    return this.sent;
  }

  /** Of the interfaces that it listens on, with prefix length. */
  networks(): string[] {
    const { host } = this.options.listen;
    const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
    const open = host === null ? all.filter(({ internal }) => !internal) : all.filter(({ address }) => address === host);
    return open.flatMap(({ cidr, scopeid }) => (cidr && !scopeid ? cidr : []));
  }

  /** `identity` null: without TLS. Rejects where the address cannot be had. */
  async open(identity: ServerIdentity | null): Promise<void> {
    const answer = (request: IncomingMessage, response: ServerResponse) => this.answer(request, response);
    const server = identity
      ? createTlsServer({ ...identity, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' }, answer)
      : createServer(answer);
    server.timeout = SILENCE_MS;
    server.maxConnections = MOST_CONNECTIONS;
    const { host, port } = this.options.listen;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host ?? undefined, () => resolve());
    });
    server.removeAllListeners('error').on('error', (error) => this.options.log.warn({ reason: error.message }, 'listener for devices beside this one'));
    this.server = server;
  }

  /** The certificate has been renewed. */
  renew(identity: ServerIdentity): void {
    if (this.server && 'setSecureContext' in this.server) this.server.setSecureContext({ ...identity, minVersion: 'TLSv1.3' });
  }

  async close(): Promise<void> {
    const { server } = this;
    this.server = null;
    if (!server) return;
    server.closeAllConnections();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const sha256 = /^\/blobs\/([0-9a-f]{64})$/.exec(request.url ?? '')?.[1];
    if (!sha256) return refuse(response, 404);
    if (request.method !== 'GET' && request.method !== 'HEAD') return refuse(response, 405);
    if (!this.mayAsk(request)) return refuse(response, 403, { 'retry-after': RETRY_AFTER_S });
    const found = this.options.holdings.find(sha256);
    if (found.t === 'unknown') return refuse(response, 404, { 'retry-after': RETRY_AFTER_S });
    if (found.t === 'not yet') return refuse(response, 503, { 'retry-after': RETRY_AFTER_S, [HELD_HEADER]: found.held });
    if (this.answering >= ANSWERS_AT_ONCE) return refuse(response, 503, { 'retry-after': RETRY_AFTER_S });
    const size = found.t === 'manifest' ? found.data.length : found.bytes;
    const asked = askedRange(request.headers.range, size);
    if (asked.t === 'none of it') return refuse(response, 416, { 'content-range': `bytes */${size}` });
    const { start, end } = asked.t === 'part' ? asked.range : { start: 0, end: size - 1 };
    const headers = { 'content-type': 'application/octet-stream', 'accept-ranges': 'bytes', 'content-length': end - start + 1 };
    if (asked.t === 'part') response.writeHead(206, { ...headers, 'content-range': `bytes ${start}-${end}/${size}` });
    else response.writeHead(200, headers);
    if (request.method === 'HEAD') return void response.end();
    const source = found.t === 'manifest' ? Readable.from([found.data.subarray(start, end + 1)])
      : createReadStream(found.path, { start: found.offset + start, end: found.offset + end, highWaterMark: READ_BYTES });
    source.on('data', (part: Buffer) => { this.sent += part.length; });
    this.answering += 1;
    // What cannot be read to the end cuts the answer short, and the other notices.
    pipeline(source, response, () => { this.answering -= 1; });
  }

  private mayAsk({ socket }: IncomingMessage): boolean {
    if (!('getPeerCertificate' in socket)) return true;
    const name = (socket as TLSSocket).getPeerCertificate().subject?.CN;
    return typeof name === 'string' && this.options.isNamed(name);
  }
}

function refuse(response: ServerResponse, status: number, headers: Record<string, string | number> = {}): void {
  response.writeHead(status, { ...headers, 'content-length': 0 }).end();
}
