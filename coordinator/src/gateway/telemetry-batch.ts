/**
 * Frames on their way to being counted, of all devices of this coordinator together. One frame per device waits; a
 * newer one replaces it, which loses nothing, for frames are cumulative. What waits is counted several times a second
 * in a few calls. While Redis is away frames are shed and counted as such.
 */
import type { Logger } from '@moefleet/runtime';
import { RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';
import type { CountedFrame, FrameOutcome } from '../registry/telemetry-store';

export interface FrameSink {
  readonly up: boolean;
  count(frames: readonly CountedFrame[]): Promise<(FrameOutcome | Error)[]>;
}

const FLUSH_EVERY_MS = 100;
/** The rest waits for the next turn, so that a storm does not hold the event loop up. */
const MOST_PER_FLUSH = 1024;
const MOST_TOLD = 1000;

export class TelemetryBatch {
  private readonly waiting = new Map<string, CountedFrame>();
  private timer: NodeJS.Timeout | undefined;
  private flushing: Promise<void> | null = null;
  private sheds = 0;
  /** Devices and boots of which a refusal was logged. */
  private readonly told = new Set<string>();

  constructor(private readonly sink: FrameSink, private readonly metrics: Metrics, private readonly log: Logger) {}

  /** Frames this coordinator has shed since it began. */
  get shed(): number {
    return this.sheds;
  }

  get size(): number {
    return this.waiting.size;
  }

  put(frame: CountedFrame): void {
    if (!this.sink.up) return this.noteShed();
    // A frame of another boot is no successor: both count.
    const key = `${frame.deviceId}/${frame.bootId}`;
    if (this.waiting.has(key)) this.metrics.telemetryFrames.inc({ outcome: 'replaced' });
    this.waiting.set(key, frame);
    this.timer ??= setTimeout(() => this.flushSoon(), FLUSH_EVERY_MS);
  }

  noteShed(): void {
    this.sheds += 1;
    this.metrics.telemetryFrames.inc({ outcome: 'shed' });
  }

  /** Counts what waits; resolves when that is done. */
  async drain(): Promise<void> {
    while (this.flushing || this.waiting.size > 0) await (this.flushing ?? this.flush());
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  private flushSoon(): void {
    this.timer = undefined;
    if (!this.flushing) void this.flush();
  }

  private flush(): Promise<void> {
    const frames: CountedFrame[] = [];
    const devices = new Set<string>();
    for (const [key, frame] of this.waiting) {
      if (frames.length >= MOST_PER_FLUSH) break;
      if (devices.has(frame.deviceId)) continue;
      devices.add(frame.deviceId);
      frames.push(frame);
      this.waiting.delete(key);
    }
    this.flushing = this.count(frames).finally(() => {
      this.flushing = null;
      if (this.waiting.size > 0) this.timer ??= setTimeout(() => this.flushSoon(), FLUSH_EVERY_MS);
    });
    return this.flushing;
  }

  private tellRefused({ deviceId, bootId, frame }: CountedFrame): void {
    if (this.told.size >= MOST_TOLD) this.told.clear();
    if (this.told.has(`${deviceId}/${bootId}`)) return;
    this.told.add(`${deviceId}/${bootId}`);
    this.log.warn({ deviceId, bootId, sequence: String(frame.sequence) }, 'telemetry refused: a counter fell within a boot, or is above 2^53');
  }

  private async count(frames: readonly CountedFrame[]): Promise<void> {
    for (const [at, outcome] of (await this.sink.count(frames)).entries()) {
      if (!(outcome instanceof Error)) {
        this.metrics.telemetryFrames.inc({ outcome });
        if (outcome === 'refused') this.tellRefused(frames[at]!);
        continue;
      }
      this.noteShed();
      if (!(outcome instanceof RegistryUnavailableError)) this.log.error({ err: outcome, deviceId: frames[at]!.deviceId }, 'telemetry cannot be counted');
    }
  }
}
