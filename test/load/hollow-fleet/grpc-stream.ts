/**
 * One bidirectional gRPC call over a TCP connection (and TLS session) of its own, on Node's HTTP/2. A grpc-js client
 * per agent would cost the generator more memory than the coordinator needs to serve it; on the wire there is no
 * difference: HTTP/2 frames, length-prefixed messages, the status in the trailers.
 */
import { connect as http2Connect, type ClientHttp2Session, type ClientHttp2Stream, constants, type IncomingHttpHeaders } from 'node:http2';
import { connect as tcpConnect, type Socket } from 'node:net';
import { connect as tlsConnect, type SecureContext, type TLSSocket } from 'node:tls';

export interface ClientTls {
  /** the fleet's CA, this agent's own certificate and key; made once, because that takes as long as a handshake */
  context: SecureContext;
  /** PEM */
  cert: string;
  key: string;
  /** name the coordinator's certificate is checked for */
  servername: string;
}

export interface Target { host: string; port: number; tls: ClientTls | null }

/** Why a call is over. `code` is gRPC's; what breaks below it is UNAVAILABLE (14). */
export interface CallEnd { code: number; details: string; retryAfterMs: number | null }

export interface CallEvents {
  /** TCP and, where asked for, TLS are up; may write */
  connected(tls: TLSSocket | null): void;
  message(bytes: Buffer): void;
  /** exactly once, last */
  end(end: CallEnd): void;
}

const UNAVAILABLE = 14;
/** Above the largest message of a coordinator to an agent (Measure). */
const MOST_MESSAGE_BYTES = 8 * 1024 * 1024;
const PREFIX_BYTES = 5;

export class GrpcCall {
  private readonly socket: Socket;
  private session: ClientHttp2Session | null = null;
  private stream: ClientHttp2Stream | null = null;
  private partial: Buffer | null = null;
  private over = false;
  private retryAfterMs: number | null = null;

  constructor(private readonly target: Target, private readonly path: string, private readonly events: CallEvents) {
    const { host, port, tls } = target;
    this.socket = tls
      ? tlsConnect({ host, port, servername: tls.servername, ALPNProtocols: ['h2'], minVersion: 'TLSv1.3', secureContext: tls.context })
      : tcpConnect(port, host);
    this.socket.setNoDelay(true);
    const failed = (error: Error) => this.finish({ code: UNAVAILABLE, details: error.message, retryAfterMs: null });
    this.socket.once('error', failed);
    this.socket.once('close', () => failed(new Error('the connection was closed')));
    this.socket.once(tls ? 'secureConnect' : 'connect', () => this.open());
  }

  /** Fire and forget; what is not taken by the transport at once waits in it. */
  write(message: Uint8Array): void {
    if (!this.stream || this.over) return;
    const framed = Buffer.allocUnsafe(PREFIX_BYTES + message.length);
    framed.writeUInt8(0, 0);
    framed.writeUInt32BE(message.length, 1);
    framed.set(message, PREFIX_BYTES);
    this.stream.write(framed);
  }

  /** Whether messages wait here because the coordinator does not read them. */
  get congested(): boolean {
    return (this.stream?.writableLength ?? 0) > 0;
  }

  /** Stops reading: what the coordinator sends piles up to the flow-control window, and then with it. */
  pause(): void {
    this.stream?.pause();
  }

  resume(): void {
    this.stream?.resume();
  }

  /** As when the process dies: the kernel closes the connection, no status is sent. */
  destroy(): void {
    this.finish({ code: 1, details: 'given up here', retryAfterMs: null });
  }

  /** Half-closes; the coordinator answers with its status. */
  leave(): void {
    this.stream?.end();
  }

  private open(): void {
    if (this.over) return;
    const { host, port, tls } = this.target;
    const session = http2Connect(`${tls ? 'https' : 'http'}://${host}:${port}`, { createConnection: () => this.socket, settings: { enablePush: false } });
    this.session = session;
    session.on('error', (error) => this.finish({ code: UNAVAILABLE, details: error.message, retryAfterMs: null }));
    session.on('goaway', () => this.finish({ code: UNAVAILABLE, details: 'the coordinator goes away', retryAfterMs: null }));
    const stream = session.request({
      [constants.HTTP2_HEADER_METHOD]: 'POST', [constants.HTTP2_HEADER_PATH]: this.path, [constants.HTTP2_HEADER_AUTHORITY]: `${host}:${port}`,
      'content-type': 'application/grpc', te: 'trailers',
    });
    this.stream = stream;
    stream.on('response', (headers) => this.takeHeaders(headers, false));
    stream.on('trailers', (headers) => this.takeHeaders(headers, true));
    stream.on('data', (chunk: Buffer) => this.takeData(chunk));
    stream.on('error', (error) => this.finish({ code: UNAVAILABLE, details: error.message, retryAfterMs: this.retryAfterMs }));
    stream.on('close', () => this.finish({ code: UNAVAILABLE, details: 'the stream was closed without a status', retryAfterMs: this.retryAfterMs }));
    this.events.connected(tls ? this.socket as TLSSocket : null);
  }

  /** A call that fails at once has its status in the headers. */
  private takeHeaders(headers: IncomingHttpHeaders, last: boolean): void {
    const asked = headers['retry-after-ms'];
    if (asked !== undefined) this.retryAfterMs = Number(asked);
    const status = headers['grpc-status'];
    if (status === undefined && !last) return;
    this.finish({ code: Number(status ?? 2), details: decodeURIComponent(String(headers['grpc-message'] ?? '')), retryAfterMs: this.retryAfterMs });
  }

  private takeData(chunk: Buffer): void {
    let bytes = this.partial ? Buffer.concat([this.partial, chunk]) : chunk;
    this.partial = null;
    while (bytes.length >= PREFIX_BYTES && !this.over) {
      const length = bytes.readUInt32BE(1);
      if (length > MOST_MESSAGE_BYTES) return this.finish({ code: 8, details: `a message of ${length} bytes`, retryAfterMs: null });
      if (bytes.length < PREFIX_BYTES + length) break;
      this.events.message(bytes.subarray(PREFIX_BYTES, PREFIX_BYTES + length));
      bytes = bytes.subarray(PREFIX_BYTES + length);
    }
    if (bytes.length > 0) this.partial = Buffer.from(bytes);
  }

  private finish(end: CallEnd): void {
    if (this.over) return;
    this.over = true;
    this.session?.destroy();
    this.socket.destroy();
    this.events.end(end);
  }
}
