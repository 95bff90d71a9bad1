/** What progress in bytes says beside the share done: how much of how much, how fast, how long still. */
import { formatSize } from '@moefleet/runtime';

export interface Bytes { done: number; total: number; }

export class ByteRate {
  private first: { done: number; atMs: number } | null = null;

  constructor(private readonly nowMs: () => number = Date.now) {}

  /** Counted from the first call on, which may come when some is done already. */
  text({ done, total }: Bytes): string {
    const now = this.nowMs();
    this.first ??= { done, atMs: now };
    const sizes = `${formatSize(done)} of ${formatSize(total)}`;
    const perMs = (done - this.first.done) / (now - this.first.atMs);
    if (!(perMs > 0) || !Number.isFinite(perMs)) return sizes;
    return `${sizes}, ${formatSize(perMs * 1000)}/s, ${durationText((total - done) / perMs / 1000)} left`;
  }
}

export function durationText(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
