/**
 * A collector of OTLP over HTTP/protobuf: a real server on a free port that keeps the spans it takes and can be told
 * to refuse. It reads the wire format itself, so that it checks what was sent and not the library that sent it.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface CollectedSpan {
  traceId: string;
  spanId: string;
  parentSpanId: string;
  name: string;
  kind: number;
  startNs: bigint;
  endNs: bigint;
  attributes: Record<string, unknown>;
  links: { traceId: string; spanId: string }[];
  statusCode: number;
  resource: Record<string, unknown>;
}

export interface Verdict {
  status: number;
  headers?: Record<string, string>;
  body?: Uint8Array;
}

export const ACCEPT: Verdict = { status: 200, headers: { 'content-type': 'application/x-protobuf' } };

export class OtlpCollector {
  /** spans of accepted requests, in order of arrival; a span sent twice is here twice */
  readonly spans: CollectedSpan[] = [];
  /** requests of any outcome */
  requests = 0;
  /** what the next requests are answered with */
  verdict: (request: number) => Verdict = () => ACCEPT;
  private server: Server | null = null;
  private port = 0;

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async start(): Promise<void> {
    const server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        this.requests += 1;
        const right = request.method === 'POST' && request.url === '/v1/traces' && request.headers['content-type'] === 'application/x-protobuf';
        const verdict = right ? this.verdict(this.requests) : { status: 404 };
        if (verdict.status === 200) this.spans.push(...readSpans(Buffer.concat(chunks)));
        response.writeHead(verdict.status, verdict.headers).end(verdict.body);
      });
    });
    this.server = server;
    await new Promise<void>((resolve) => server.listen(this.port, '127.0.0.1', resolve));
    this.port = (server.address() as AddressInfo).port;
  }

  /** Keeps the port for the next `start`. */
  async stop(): Promise<void> {
    const { server } = this;
    this.server = null;
    if (!server) return;
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

/** ExportTraceServiceResponse with a partial success. */
export function partialSuccess(rejectedSpans: number): Uint8Array {
  return Uint8Array.from([0x0a, 0x02, 0x08, rejectedSpans]);
}

type Field = { number: number; value: bigint | Buffer };

function* fieldsOf(bytes: Buffer): Generator<Field> {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++]!;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = Number(varint());
    const [number, wire] = [tag >> 3, tag & 7];
    if (wire === 0) yield { number, value: varint() };
    else if (wire === 1) { yield { number, value: bytes.readBigUInt64LE(at) }; at += 8; }
    else if (wire === 5) { yield { number, value: BigInt(bytes.readUInt32LE(at)) }; at += 4; }
    else if (wire === 2) {
      const length = Number(varint());
      yield { number, value: bytes.subarray(at, at + length) };
      at += length;
    } else throw new Error(`wire type ${wire} at byte ${at}`);
  }
}

const bytesOf = (bytes: Buffer, number: number) => [...fieldsOf(bytes)].filter((field) => field.number === number).map((field) => field.value as Buffer);
const textOf = (bytes: Buffer, number: number) => bytesOf(bytes, number)[0]?.toString('utf8') ?? '';
const hexOf = (bytes: Buffer, number: number) => bytesOf(bytes, number)[0]?.toString('hex') ?? '';
const numberOf = (bytes: Buffer, number: number) => ([...fieldsOf(bytes)].find((field) => field.number === number)?.value as bigint | undefined) ?? 0n;

export function readSpans(request: Buffer): CollectedSpan[] {
  return bytesOf(request, 1).flatMap((resourceSpans) => {
    const resource = attributesOf(bytesOf(resourceSpans, 1)[0] ?? Buffer.alloc(0), 1);
    return bytesOf(resourceSpans, 2).flatMap((scopeSpans) => bytesOf(scopeSpans, 2)).map((span) => ({
      traceId: hexOf(span, 1), spanId: hexOf(span, 2), parentSpanId: hexOf(span, 4), name: textOf(span, 5), kind: Number(numberOf(span, 6)),
      startNs: numberOf(span, 7), endNs: numberOf(span, 8), attributes: attributesOf(span, 9),
      links: bytesOf(span, 13).map((link) => ({ traceId: hexOf(link, 1), spanId: hexOf(link, 2) })),
      statusCode: Number(numberOf(bytesOf(span, 15)[0] ?? Buffer.alloc(0), 3)), resource,
    }));
  });
}

function attributesOf(message: Buffer, number: number): Record<string, unknown> {
  return Object.fromEntries(bytesOf(message, number).map((pair) => [textOf(pair, 1), valueOf(bytesOf(pair, 2)[0] ?? Buffer.alloc(0))]));
}

function valueOf(any: Buffer): unknown {
  for (const { number, value } of fieldsOf(any)) {
    if (number === 1) return (value as Buffer).toString('utf8');
    if (number === 2) return value === 1n;
    if (number === 3) return Number(BigInt.asIntN(64, value as bigint));
    if (number === 4) { const view = Buffer.alloc(8); view.writeBigUInt64LE(value as bigint); return view.readDoubleLE(); }
    if (number === 5) return bytesOf(value as Buffer, 1).map(valueOf);
  }
  return null;
}
