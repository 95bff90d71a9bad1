/** A rate with a burst. Holds at most `burst` tokens, gains `perSecond`; a take that finds too few takes nothing. */
export class TokenBucket {
  private tokens: number;
  private atMs: number;

  /** `now` in milliseconds, never going back */
  constructor(private readonly perSecond: number, private readonly burst: number, private readonly now: () => number = () => performance.now()) {
    this.tokens = burst;
    this.atMs = now();
  }

  take(count: number): boolean {
    this.refill();
    if (this.tokens < count) return false;
    this.tokens -= count;
    return true;
  }

  get full(): boolean {
    this.refill();
    return this.tokens >= this.burst;
  }

  private refill(): void {
    const nowMs = this.now();
    this.tokens = Math.min(this.burst, this.tokens + Math.max(0, nowMs - this.atMs) * this.perSecond / 1000);
    this.atMs = nowMs;
  }
}
