/**
 * How fast and when a device may fetch from its coordinator: what the spec asks for and what was set on the device, the stricter
 * of both. The rate is one token bucket for all ranges that are under way, with a second's worth of burst.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { printQuietHours, type QuietHours, quietForMs } from './quiet-hours';

export interface FetchLimits {
  /** null: no bound */
  readonly bytesPerSecond: number | null;
  readonly quietHours: QuietHours | null;
}

const BURST_MS = 1000;

export class FetchAllowance {
  private spec: FetchLimits = { bytesPerSecond: null, quietHours: null };
  /** in bytes; below zero what has been taken in advance */
  private tokens = 0;
  private filledMs: number;

  /** `now`: monotonic, in milliseconds; `clock`: the device's time of day */
  constructor(private readonly device: FetchLimits, private readonly now: () => number, private readonly clock: () => Date) {
    this.filledMs = now();
  }

  /** What the spec in hand asks for. */
  set(spec: FetchLimits): void {
    this.spec = spec;
  }

  get bytesPerSecond(): number | null {
    const bounds = [this.device.bytesPerSecond, this.spec.bytesPerSecond].filter((bound) => bound !== null);
    return bounds.length === 0 ? null : Math.min(...bounds);
  }

  /** null: now. */
  quiet(): { ms: number; reason: string } | null {
    const spans = [this.device.quietHours, this.spec.quietHours].filter((span) => span !== null);
    const found = spans.map((span) => ({ ms: quietForMs(span, this.clock()), reason: `quiet hours, ${printQuietHours(span)}` }));
    const longest = found.reduce<{ ms: number; reason: string } | null>((most, one) => (one.ms > (most?.ms ?? 0) ? one : most), null);
    return longest;
  }

  /** Resolves when these bytes, which have arrived, are within the rate. Rejects when `signal` aborts. */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    const rate = this.bytesPerSecond;
    if (rate === null) return;
    const now = this.now();
    const full = (rate * BURST_MS) / 1000;
    this.tokens = Math.min(full, this.tokens + ((now - this.filledMs) * rate) / 1000) - bytes;
    this.filledMs = now;
    if (this.tokens < 0) await delay((-this.tokens * 1000) / rate, undefined, { signal });
  }
}
