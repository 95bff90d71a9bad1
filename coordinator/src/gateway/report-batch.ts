/** Devices that have reported in this turn of the event loop; at its end each writes what it said last. */
export class ReportBatch {
  private readonly waiting = new Set<{ writeReport(): void }>();

  put(device: { writeReport(): void }): void {
    if (this.waiting.size === 0) setImmediate(() => this.flush());
    this.waiting.add(device);
  }

  private flush(): void {
    const devices = [...this.waiting];
    this.waiting.clear();
    for (const device of devices) device.writeReport();
  }
}
