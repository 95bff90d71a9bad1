/**
 * Server-sent events to one client. The engine does not wait for a slow reader: while the socket is full, events are
 * kept (an answer is bounded by the model's context) and follow when it drains; a reader that takes nothing for
 * `stallMs` is cut off.
 */
import type { ServerResponse } from 'node:http';

const DEFAULT_STALL_MS = 60_000;

export class EventStream {
  private waiting: string[] = [];
  private stalled: NodeJS.Timeout | null = null;
  private onEmpty: () => void = () => {};

  constructor(private readonly response: ServerResponse, private readonly stallMs = DEFAULT_STALL_MS) {}

  /** `trailers`: names of those that `end` will send; not announced to an HTTP/1.0 client, which has no place for them. */
  open(headers: Record<string, string>, trailers: readonly string[]): void {
    this.response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
      ...(this.response.useChunkedEncodingByDefault ? { trailer: trailers.join(', ') } : {}),
      ...headers,
    });
    this.response.flushHeaders();
  }

  get opened(): boolean {
    return this.response.headersSent;
  }

  /** One `data:` event; JSON has no line breaks of its own. */
  send(data: unknown): void {
    this.write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`);
  }

  /** Resolves when all was handed to the socket, or the client has gone. */
  async end(trailers: Record<string, string>): Promise<void> {
    if (this.waiting.length > 0 && !this.response.destroyed) await new Promise<void>((resolve) => { this.onEmpty = resolve; });
    if (this.response.destroyed) return;
    this.response.addTrailers(trailers);
    await new Promise<void>((resolve) => {
      this.response.once('close', resolve);
      this.response.end(resolve);
    });
  }

  private write(text: string): void {
    if (this.response.destroyed) return;
    if (this.stalled !== null) {
      this.waiting.push(text);
      return;
    }
    if (this.response.write(text)) return;
    this.stalled = setTimeout(() => this.response.destroy(), this.stallMs);
    const resume = () => {
      this.response.off('drain', resume);
      this.response.off('close', resume);
      clearTimeout(this.stalled!);
      this.stalled = null;
      const text = this.waiting.join('');
      this.waiting = [];
      if (text !== '') this.write(text);
      if (this.stalled === null || this.response.destroyed) this.onEmpty();
    };
    this.response.on('drain', resume);
    this.response.on('close', resume);
  }
}
