/**
 * Takes in one device's telemetry. Only the newest frame counts, so a frame that waits for Redis is replaced by the
 * next; a few router windows may wait; while Redis is away both are shed and counted. Never a queue without a bound.
 */
import type { RouterWindow, TelemetryFrame } from '@moefleet/proto';
import { RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';

export interface TelemetrySink {
  /** false: fenced off */
  storeFrame(frame: TelemetryFrame): Promise<boolean>;
  storeWindow(window: RouterWindow): Promise<unknown>;
}

const MOST_WAITING_WINDOWS = 4;

export class TelemetryIntake {
  private lastSequence: bigint | null = null;
  private frame: TelemetryFrame | null = null;
  private readonly windows: RouterWindow[] = [];
  private storing = false;
  private closed = false;

  /** `onError` gets what is neither "Redis is away" nor success. */
  constructor(private readonly sink: TelemetrySink, private readonly metrics: Metrics, private readonly onGap: (missing: bigint) => void, private readonly onError: (error: unknown) => void) {}

  takeFrame(frame: TelemetryFrame): void {
    const last = this.lastSequence;
    if (last !== null && frame.sequence <= last) return this.onGap(0n);
    this.lastSequence = frame.sequence;
    if (last !== null && frame.sequence > last + 1n) this.onGap(frame.sequence - last - 1n);
    if (this.frame) this.metrics.telemetryFrames.inc({ outcome: 'replaced' });
    this.frame = frame;
    this.pump();
  }

  takeWindow(window: RouterWindow): void {
    if (this.windows.length >= MOST_WAITING_WINDOWS) this.metrics.routerWindows.inc({ outcome: 'shed' });
    else this.windows.push(window);
    this.pump();
  }

  close(): void {
    this.closed = true;
  }

  private pump(): void {
    if (this.storing) return;
    this.storing = true;
    void this.storeAll().finally(() => { this.storing = false; });
  }

  private async storeAll(): Promise<void> {
    while (!this.closed && (this.frame || this.windows.length > 0)) {
      const frame = this.frame;
      this.frame = null;
      if (frame) await this.store(this.metrics.telemetryFrames, () => this.sink.storeFrame(frame));
      const window = this.windows.shift();
      if (window) await this.store(this.metrics.routerWindows, () => this.sink.storeWindow(window));
    }
  }

  private async store(counter: Metrics['telemetryFrames'], write: () => Promise<unknown>): Promise<void> {
    try {
      const stored = await write();
      counter.inc({ outcome: stored === false ? 'shed' : 'stored' });
    } catch (error) {
      counter.inc({ outcome: 'shed' });
      if (!(error instanceof RegistryUnavailableError)) this.onError(error);
    }
  }
}
