/**
 * Sends spooled windows to the coordinator, one at a time: in parts, each after the one before was acknowledged, and forgets
 * a window when it is stored there, or refused for good. A stream that ends costs the parts sent so far. Coordinators of
 * earlier releases take windows whole and acknowledge nothing: they get one a second.
 */
import type { WindowAck } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { Upload } from './stream-outbox';
import type { WindowSpool } from './window-spool';

const WHOLE_EVERY_MS = 1_000;
const MOST_CHUNK_BYTES = 256 * 1024;
/** A coordinator that does not answer at all. */
const ANSWER_TIMEOUT_MS = 60_000;
const MOST_RETRY_MS = 600_000;

type Spooled = NonNullable<Awaited<ReturnType<WindowSpool['oldest']>>>;

type State =
  | { t: 'offline' }
  | { t: 'idle'; chunkBytes: number | null }
  /** reads the next window */
  | { t: 'loading'; chunkBytes: number | null }
  | { t: 'sending'; chunkBytes: number; spooled: Spooled; offset: number; timer: NodeJS.Timeout }
  | { t: 'waiting'; chunkBytes: number | null; timer: NodeJS.Timeout };

export interface WindowUploadOptions {
  spool: WindowSpool;
  /** Puts what is next in the outbox. */
  post: (body: Upload) => void;
  log: Logger;
}

export class WindowUpload {
  private state: State = { t: 'offline' };
  private sentCount = 0;
  private refusedCount = 0;

  constructor(private readonly options: WindowUploadOptions) {}

  get counts(): { sent: number; refused: number } {
    return { sent: this.sentCount, refused: this.refusedCount };
  }

  /** A stream is open; `chunkBytes` as Welcome says. */
  online(chunkBytes: number | undefined): void {
    this.transition({ t: 'idle', chunkBytes: chunkBytes ? Math.min(chunkBytes, MOST_CHUNK_BYTES) : null });
    this.wake();
  }

  offline(): void {
    this.transition({ t: 'offline' });
  }

  /** There may be a window to send. */
  wake(): void {
    const { state } = this;
    if (state.t !== 'idle') return;
    const loading: State = { t: 'loading', chunkBytes: state.chunkBytes };
    this.transition(loading);
    this.options.spool.oldest().then((spooled) => {
      if (this.state !== loading) return;
      if (!spooled) this.transition({ t: 'idle', chunkBytes: loading.chunkBytes });
      else if (loading.chunkBytes === null) this.sendWhole(spooled);
      else this.sendPart(loading.chunkBytes, spooled, 0);
    }, (error: Error) => {
      this.options.log.warn({ reason: error.message }, 'spooled router windows cannot be read');
      if (this.state === loading) this.waitFor(MOST_RETRY_MS, loading.chunkBytes);
    });
  }

  acknowledged({ windowId, receivedBytes, stored, refused, retryAfterMs }: WindowAck): void {
    const { state } = this;
    if (state.t !== 'sending' || state.spooled.window.windowId !== windowId) return;
    if (stored) {
      this.sentCount += 1;
      return this.forget(state.spooled, state.chunkBytes);
    }
    if (refused !== '') {
      this.refusedCount += 1;
      this.options.log.warn({ windowId, reason: refused }, 'the coordinator refuses a router window');
      return this.forget(state.spooled, state.chunkBytes);
    }
    if (retryAfterMs > 0 || receivedBytes !== state.offset) return this.waitFor(Math.min(retryAfterMs || WHOLE_EVERY_MS, MOST_RETRY_MS), state.chunkBytes);
    this.sendPart(state.chunkBytes, state.spooled, receivedBytes);
  }

  private sendPart(chunkBytes: number, spooled: Spooled, from: number): void {
    const { body, window: { windowId } } = spooled;
    // All parts are there, and the window is being stored.
    if (from >= body.length) return;
    const data = body.subarray(from, from + chunkBytes);
    const timer = setTimeout(() => this.waitFor(WHOLE_EVERY_MS, chunkBytes), ANSWER_TIMEOUT_MS);
    this.transition({ t: 'sending', chunkBytes, spooled, offset: from + data.length, timer });
    this.options.post({ $case: 'windowChunk', value: { windowId, offset: from, totalBytes: body.length, data } });
  }

  private sendWhole(spooled: Spooled): void {
    this.options.post({ $case: 'routerWindow', value: spooled.window });
    this.sentCount += 1;
    void this.options.spool.remove(spooled.file).catch(() => {});
    this.waitFor(WHOLE_EVERY_MS, null);
  }

  private forget(spooled: Spooled, chunkBytes: number): void {
    const loading: State = { t: 'loading', chunkBytes };
    this.transition(loading);
    const goOn = () => {
      if (this.state !== loading) return;
      this.transition({ t: 'idle', chunkBytes });
      this.wake();
    };
    this.options.spool.remove(spooled.file).then(goOn, goOn);
  }

  private waitFor(ms: number, chunkBytes: number | null): void {
    const timer = setTimeout(() => {
      this.transition({ t: 'idle', chunkBytes });
      this.wake();
    }, ms);
    this.transition({ t: 'waiting', chunkBytes, timer });
  }

  private transition(to: State): void {
    const from = this.state;
    this.state = to;
    if (from.t === 'sending' || from.t === 'waiting') clearTimeout(from.timer);
  }
}
