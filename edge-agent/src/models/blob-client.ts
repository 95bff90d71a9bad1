/**
 * Reads ranges of blobs (`GET /blobs/<sha256>`) from one place, a coordinator or a device beside this one, over connections that are
 * kept. It checks that the answer is the range that was asked for and takes no byte beyond it; whether the bytes are the right ones
 * is for whoever knows all of the blob. A place that says nothing for a while counts as lost.
 */
import { Agent as HttpAgent, type IncomingMessage, request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { PeerCertificate } from 'node:tls';

const SILENCE_MS = 30_000;
const MAX_RETRY_AFTER_MS = 5 * 60_000;
/** What a device tells of how much it has of a model, so that others see it move. */
export const HELD_HEADER = 'x-moefleet-held';

export interface BlobTls {
  /** PEM */
  readonly ca: string;
  readonly key: string;
  readonly cert: string;
  /** the name that the other's certificate is for; null where `check` decides */
  readonly servername: string | null;
  readonly check?: (certificate: PeerCertificate) => Error | undefined;
}

export interface BlobPlace { readonly host: string; readonly port: number; readonly tls: BlobTls | null; }

export interface Range { readonly sha256: string; readonly offset: number; readonly bytes: number; }

/** An answer that is not the bytes that were asked for. */
export class BlobAnswerError extends Error {
  override readonly name = 'BlobAnswerError';
  /** `retryAfterMs`, `held`: null where the answer does not say */
  constructor(message: string, readonly status: number, readonly retryAfterMs: number | null, readonly held: number | null) {
    super(message);
  }
}

export class BlobClient {
  private readonly agent: HttpAgent | HttpsAgent;

  constructor(private readonly place: BlobPlace, private readonly silenceMs = SILENCE_MS) {
    const { tls } = place;
    if (!tls) this.agent = new HttpAgent({ keepAlive: true });
    else {
      const { ca, key, cert, check } = tls;
      this.agent = new HttpsAgent({
        keepAlive: true, ca, key, cert, minVersion: 'TLSv1.3', servername: tls.servername ?? '',
        // A session that is taken up again would go past the check of who is there.
        maxCachedSessions: 0,
        ...(check ? { checkServerIdentity: (_: string, certificate: PeerCertificate) => check(certificate) } : {}),
      });
    }
  }

  get name(): string {
    const { host, port } = this.place;
    return `${host.includes(':') ? `[${host}]` : host}:${port}`;
  }

  close(): void {
    this.agent.destroy();
  }

  /**
   * Gives the range's parts in order to `take`, which may be slow. Resolves with the whole blob's size; where that is smaller than
   * the range, the range ends with it. Rejects with BlobAnswerError, or the connection's error, of silence for `silenceMs` too.
   */
  async read({ sha256, offset, bytes }: Range, take: (part: Buffer) => Promise<void> | void, signal: AbortSignal, silenceMs = this.silenceMs): Promise<number> {
    const response = await this.answer(sha256, `bytes=${offset}-${offset + bytes - 1}`, signal, silenceMs);
    try {
      const { total, length } = checkAnswer(response, sha256, offset, bytes);
      let left = length;
      for await (const part of this.parts(response, silenceMs)) {
        if (part.length > left) throw new BlobAnswerError(`${this.name}: more bytes than the ${length} that were asked for`, 200, null, null);
        left -= part.length;
        await take(part);
      }
      if (left > 0) throw new Error(`${this.name} ended ${left} bytes before the end of a range`);
      return total;
    } finally {
      // Of what was not read to its end the connection is of no more use.
      if (!response.readableEnded) response.destroy();
    }
  }

  private answer(sha256: string, range: string, signal: AbortSignal, silenceMs: number): Promise<IncomingMessage> {
    const { host, port, tls } = this.place;
    return new Promise((resolve, reject) => {
      const request = (tls ? httpsRequest : httpRequest)({ host, port, agent: this.agent, path: `/blobs/${sha256}`, headers: { range }, signal });
      const timer = setTimeout(() => request.destroy(new Error(`${this.name} has not answered for ${silenceMs / 1000} s`)), silenceMs);
      request.once('response', (response) => {
        clearTimeout(timer);
        resolve(response);
      });
      request.on('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      request.end();
    });
  }

  /** Time that the taker needs is not the other's silence. */
  private async *parts(response: IncomingMessage, silenceMs: number): AsyncGenerator<Buffer> {
    let timer: NodeJS.Timeout | undefined;
    const arm = () => { timer = setTimeout(() => response.destroy(new Error(`${this.name} has said nothing for ${silenceMs / 1000} s`)), silenceMs); };
    arm();
    try {
      for await (const part of response as AsyncIterable<Buffer>) {
        clearTimeout(timer);
        yield part;
        arm();
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

function checkAnswer(response: IncomingMessage, sha256: string, offset: number, bytes: number): { total: number; length: number } {
  const { statusCode: status = 0, headers } = response;
  const retryAfter = Number(headers['retry-after'] ?? NaN);
  const refuse = (why: string): never => {
    response.resume();
    throw new BlobAnswerError(`blob ${sha256.slice(0, 12)}: ${why}`, status, Number.isFinite(retryAfter) ? Math.min(1000 * Math.max(0, retryAfter), MAX_RETRY_AFTER_MS) : null, heldOf(headers[HELD_HEADER]));
  };
  if (status === 200 && offset === 0) {
    const length = Number(headers['content-length'] ?? NaN);
    return length >= 0 && length <= bytes ? { total: length, length } : refuse(`HTTP 200 with ${headers['content-length'] ?? 'unknown'} bytes to a request for ${bytes}`);
  }
  if (status !== 206) return refuse(`HTTP ${status}`);
  const match = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(headers['content-range'] ?? '');
  const [first, last, total] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])];
  if (!match || first !== offset || last !== Math.min(offset + bytes, total) - 1 || last < first) return refuse(`the range ${headers['content-range'] ?? 'none'} came for bytes ${offset}-${offset + bytes - 1}`);
  return { total, length: last - first + 1 };
}

function heldOf(value: string | string[] | undefined): number | null {
  return typeof value === 'string' && /^\d{1,15}$/.test(value) ? Number(value) : null;
}
