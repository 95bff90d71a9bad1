/**
 * Takes one device's router windows in, part by part. A part is acknowledged when there is room for the next, and the last
 * one when the window is stored, so a device sends no faster than Redis takes, keeps what was not stored, and holds at most
 * one window here. All devices together hold no more than `WindowRoom` has; whoever finds none comes back later.
 */
import { RouterWindow, type WindowAck, type WindowChunk } from '@moefleet/proto';
import { InvalidRequestError, RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';
import { checkWindow } from './message-check';

export const WINDOW_CHUNK_BYTES = 64 * 1024;
/** Of a serialised window: what an agent makes at most, and its head. */
export const MOST_WINDOW_BYTES = 3 * 1024 * 1024;
const MOST_ID = 64;
const RETRY_MS = { order: 1_000, room: 15_000, registry: 5_000 } as const;

/** Bytes that windows on their way may take, over all streams of this coordinator. */
export class WindowRoom {
  private taken = 0;

  constructor(private readonly bytes = 64 * 1024 * 1024) {}

  take(bytes: number): boolean {
    if (this.taken + bytes > this.bytes) return false;
    this.taken += bytes;
    return true;
  }

  give(bytes: number): void {
    this.taken -= bytes;
  }
}

export interface WindowSink {
  store(window: RouterWindow): Promise<unknown>;
  /** A newer acknowledgement may replace one that has not left yet. */
  acknowledge(ack: WindowAck): void;
}

interface Part { windowId: string; totalBytes: number; received: number; data: Buffer }

export class WindowAssembly {
  private part: Part | null = null;
  private storing = false;
  private closed = false;

  /** `onError` gets what is neither "Redis is away" nor success. */
  constructor(private readonly sink: WindowSink, private readonly room: WindowRoom, private readonly metrics: Metrics, private readonly onError: (error: unknown) => void) {}

  /** Throws InvalidRequestError for a part that makes no sense. */
  take(chunk: WindowChunk): void {
    check(chunk);
    const { windowId, offset, totalBytes, data } = chunk;
    if (this.storing) return this.later(windowId, RETRY_MS.order);
    if (offset === 0) {
      this.drop();
      if (!this.room.take(totalBytes)) return this.shed(windowId, RETRY_MS.room);
      this.part = { windowId, totalBytes, received: 0, data: Buffer.alloc(totalBytes) };
    }
    const { part } = this;
    if (!part || part.windowId !== windowId || part.received !== offset || part.totalBytes !== totalBytes) return this.later(windowId, RETRY_MS.order);
    part.data.set(data, offset);
    part.received += data.length;
    if (part.received < totalBytes) return this.sink.acknowledge({ windowId, receivedBytes: part.received, stored: false, refused: '', retryAfterMs: 0 });
    this.storing = true;
    void this.store(part).finally(() => { this.storing = false; });
  }

  /** Beyond the device's budget. */
  shed(windowId: string, retryAfterMs: number = RETRY_MS.room): void {
    this.drop();
    this.metrics.routerWindows.inc({ outcome: 'shed' });
    this.later(windowId, retryAfterMs);
  }

  close(): void {
    this.closed = true;
    if (!this.storing) this.drop();
  }

  private async store({ windowId, totalBytes, data }: Part): Promise<void> {
    try {
      const window = decode(data);
      checkWindow(window);
      if (window.windowId !== windowId) throw new InvalidRequestError('window_chunk.window_id', windowId, `the id of the window in it, ${window.windowId}`);
      await this.sink.store(window);
      this.metrics.routerWindows.inc({ outcome: 'stored' });
      if (!this.closed) this.sink.acknowledge({ windowId, receivedBytes: totalBytes, stored: true, refused: '', retryAfterMs: 0 });
    } catch (error) {
      if (error instanceof RegistryUnavailableError) return this.shed(windowId, RETRY_MS.registry);
      if (!(error instanceof InvalidRequestError)) this.onError(error);
      if (!this.closed) this.sink.acknowledge({ windowId, receivedBytes: totalBytes, stored: false, refused: (error as Error).message.slice(0, 500), retryAfterMs: 0 });
    } finally {
      this.drop();
    }
  }

  private later(windowId: string, retryAfterMs: number): void {
    if (!this.closed) this.sink.acknowledge({ windowId, receivedBytes: 0, stored: false, refused: '', retryAfterMs });
  }

  private drop(): void {
    if (this.part) this.room.give(this.part.totalBytes);
    this.part = null;
  }
}

function decode(data: Buffer): RouterWindow {
  try {
    return RouterWindow.decode(data);
  } catch (error) {
    throw new InvalidRequestError('window_chunk.data', (error as Error).message, 'a serialised RouterWindow');
  }
}

function check({ windowId, offset, totalBytes, data }: WindowChunk): void {
  if (!/^[\w-]+$/.test(windowId) || windowId.length > MOST_ID) throw new InvalidRequestError('window_chunk.window_id', windowId, `letters, digits and dashes, up to ${MOST_ID}`);
  if (totalBytes < 1 || totalBytes > MOST_WINDOW_BYTES) throw new InvalidRequestError('window_chunk.total_bytes', totalBytes, `a size from 1 to ${MOST_WINDOW_BYTES}`);
  if (data.length < 1 || data.length > WINDOW_CHUNK_BYTES) throw new InvalidRequestError('window_chunk.data', `${data.length} bytes`, `a part of 1 to ${WINDOW_CHUNK_BYTES} bytes`);
  if (offset + data.length > totalBytes) throw new InvalidRequestError('window_chunk.offset', offset, `a place for ${data.length} bytes within ${totalBytes}`);
}
