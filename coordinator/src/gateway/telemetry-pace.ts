/**
 * The interval of telemetry that holds a coordinator to a rate of frames: the one that was set, or longer where that
 * many devices would send too many. Small changes are not worth a message to every device.
 */
export interface PaceOptions {
  /** at least */
  telemetryIntervalMs: number;
  framesPerSecond: number;
}

const MOST_INTERVAL_MS = 300_000;
const WORTH_TELLING = 1.25;

export class TelemetryPace {
  private current: number;

  constructor(private readonly options: PaceOptions) {
    this.current = options.telemetryIntervalMs;
  }

  get intervalMs(): number {
    return this.current;
  }

  /** true: the interval is another now, tell the devices. */
  adjust(devices: number): boolean {
    const { telemetryIntervalMs, framesPerSecond } = this.options;
    const wanted = Math.round(Math.max(telemetryIntervalMs, Math.min(MOST_INTERVAL_MS, 1000 * devices / framesPerSecond)));
    const ratio = wanted / this.current;
    const settled = wanted === telemetryIntervalMs ? wanted === this.current : ratio < WORTH_TELLING && ratio > 1 / WORTH_TELLING;
    if (settled) return false;
    this.current = wanted;
    return true;
  }
}
