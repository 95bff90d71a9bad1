/**
 * Devices that have reported in this turn of the event loop; at its end each writes what it said last. While desired specs are
 * being written that waits: what devices are to run reaches all of them before the answers of some are dealt with.
 */
const LOOK_EVERY_MS = 5;
/** Where specs are written without end. */
const MOST_WAIT_MS = 1000;

export class ReportBatch {
  private readonly waiting = new Set<{ writeReport(): void }>();
  private sinceMs = 0;

  /** `writing`: whether desired specs are being written. */
  constructor(private readonly writing: () => boolean) {}

  put(device: { writeReport(): void }): void {
    if (this.waiting.size === 0) {
      this.sinceMs = performance.now();
      setImmediate(() => this.flush());
    }
    this.waiting.add(device);
  }

  private flush(): void {
    if (this.writing() && performance.now() - this.sinceMs < MOST_WAIT_MS) return void setTimeout(() => this.flush(), LOOK_EVERY_MS);
    const devices = [...this.waiting];
    this.waiting.clear();
    for (const device of devices) device.writeReport();
  }
}
