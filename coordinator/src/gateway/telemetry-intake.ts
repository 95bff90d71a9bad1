/**
 * Takes in one device's telemetry: watches the sequence of its frames and passes them on to be counted; a few router
 * windows may wait to be stored, and while Redis is away they are shed and counted. Never a queue without a bound.
 */
import type { RouterWindow, TelemetryFrame } from '@moefleet/proto';
import { RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';

export interface TelemetrySink {
  takeFrame(frame: TelemetryFrame): void;
  storeWindow(window: RouterWindow): Promise<unknown>;
}

const MOST_WAITING_WINDOWS = 4;

export class TelemetryIntake {
  private lastSequence: bigint | null = null;
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
    this.sink.takeFrame(frame);
  }

  takeWindow(window: RouterWindow): void {
    if (this.windows.length >= MOST_WAITING_WINDOWS) this.metrics.routerWindows.inc({ outcome: 'shed' });
    else this.windows.push(window);
    if (this.storing) return;
    this.storing = true;
    void this.storeWindows().finally(() => { this.storing = false; });
  }

  close(): void {
    this.closed = true;
  }

  private async storeWindows(): Promise<void> {
    for (let window = this.windows.shift(); window && !this.closed; window = this.windows.shift()) {
      try {
        await this.sink.storeWindow(window);
        this.metrics.routerWindows.inc({ outcome: 'stored' });
      } catch (error) {
        this.metrics.routerWindows.inc({ outcome: 'shed' });
        if (!(error instanceof RegistryUnavailableError)) this.onError(error);
      }
    }
  }
}
