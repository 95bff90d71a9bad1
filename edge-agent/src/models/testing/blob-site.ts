/** Models as chunks, and a server of blobs that does what a coordinator does, or what a test has it do instead. */
import { createHash, randomBytes } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ModelManifest } from '@moefleet/proto';
import { BlobClient } from '../blob-client';
import { type Manifest, readManifest } from '../manifest';

export const sha256 = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');

export interface TestModel { file: Buffer; chunks: Buffer[]; serialised: Buffer; manifest: Manifest; }

/** Of these chunks in this order. */
export function modelOf(chunks: Buffer[]): TestModel {
  const file = Buffer.concat(chunks);
  const serialised = Buffer.from(ModelManifest.encode({
    bytes: BigInt(file.length), sha256: createHash('sha256').update(file).digest(), modelHash: 'ab'.repeat(32),
    chunks: chunks.map((data) => ({ bytes: data.length, sha256: createHash('sha256').update(data).digest() })),
  }).finish());
  return { file, chunks, serialised, manifest: readManifest(serialised, sha256(serialised), file.length) };
}

export const chunksOf = (count: number, bytes: number): Buffer[] => Array.from({ length: count }, () => randomBytes(bytes));

/** Returns true where it has answered itself. */
export type Fault = (sha: string, response: ServerResponse, request: IncomingMessage) => boolean;

export class BlobSite {
  private readonly blobs = new Map<string, Buffer>();
  private readonly server = createServer((request, response) => this.answer(request, response));
  /** of blobs, as sent */
  bytesSent = 0;
  asked: string[] = [];
  fault: Fault = () => false;

  static async start(...models: TestModel[]): Promise<BlobSite> {
    const site = new BlobSite();
    for (const { chunks, serialised } of models) for (const data of [...chunks, serialised]) site.blobs.set(sha256(data), data);
    await new Promise<void>((resolve) => site.server.listen(0, '127.0.0.1', resolve));
    return site;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  client(silenceMs?: number): BlobClient {
    return new BlobClient({ host: '127.0.0.1', port: this.port, tls: null }, silenceMs);
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const sha = request.url!.slice('/blobs/'.length);
    this.asked.push(sha);
    if (this.fault(sha, response, request)) return;
    const data = this.blobs.get(sha);
    if (!data) return void response.writeHead(404).end();
    const [first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range!)!.slice(1).map(Number) as [number, number];
    const part = data.subarray(first, Math.min(last + 1, data.length));
    this.bytesSent += part.length;
    response.writeHead(206, { 'content-length': part.length, 'content-range': `bytes ${first}-${first + part.length - 1}/${data.length}` }).end(part);
  }
}
