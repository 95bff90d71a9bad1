/**
 * How many ranges a device has under way at the coordinator at a time. A few fill a good link; where packets are lost, most of a
 * connection's time is pauses until it sends again, and many of them fill each other's. Only the link knows which it is, so on one
 * that is slow the other number is tried now and then, and many are kept where they bring clearly more. A coordinator that has no
 * time gets few.
 */
export const FEW_LANES = 4;
/** At 30% loss each way and cubic, that many bring several times what four do. */
export const MANY_LANES = 32;
/** At such a loss a shorter window says little; the first after a change is for connections to be made. */
const WINDOW_MS = 15_000;
/** A link that brings this much needs no more connections, in bytes a second. */
const FAST = 1024 ** 2;
/** What many have to bring over few. */
const GAIN = 1.5;
/** A connection that has lost several packets in a row waits longer and longer; meanwhile another one goes on where it stopped. */
const PATIENCE_MS = 4_000;
/** Windows until the other number is tried again. */
const HOLD_WINDOWS = 40;

export class RangeLanes {
  private lanes = FEW_LANES;
  private underWay = 0;
  private readonly waiting: (() => void)[] = [];
  /** of the window; time counts only while something is under way */
  private bytes = 0;
  private busyMs = 0;
  private busySinceMs = 0;
  private settling = false;
  /** rate with the other number, while it is being found out what these bring */
  private before: number | null = null;
  private hold = 0;

  /** `now`: monotonic, in milliseconds */
  constructor(private readonly now: () => number) {}

  get count(): number {
    return this.lanes;
  }

  /** How long a connection may be silent before its range goes on over another; undefined: as long as anybody's. */
  get patienceMs(): number | undefined {
    return this.lanes === MANY_LANES ? PATIENCE_MS : undefined;
  }

  /** Runs `work` as soon as a lane is free. Rejects as it does, or when `signal` aborts. */
  async run<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    while (this.underWay >= this.lanes) await new Promise<void>((resolve) => this.waiting.push(resolve));
    if (this.underWay === 0) this.busySinceMs = this.now();
    this.underWay += 1;
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      this.underWay -= 1;
      if (this.underWay === 0) this.busyMs += this.now() - this.busySinceMs;
      this.waiting.shift()?.();
    }
  }

  arrived(bytes: number): void {
    this.bytes += bytes;
    const now = this.now();
    const ms = this.busyMs + now - this.busySinceMs;
    if (ms < WINDOW_MS) return;
    const rate = (1000 * this.bytes) / ms;
    Object.assign(this, { bytes: 0, busyMs: 0, busySinceMs: now });
    this.step(rate);
  }

  /** The other end has no time for so many. */
  refused(): void {
    this.before = null;
    this.hold = HOLD_WINDOWS;
    this.set(FEW_LANES);
  }

  private step(rate: number): void {
    if (this.settling) {
      this.settling = false;
    } else if (this.before !== null) {
      const [few, many] = this.lanes === MANY_LANES ? [this.before, rate] : [rate, this.before];
      this.before = null;
      this.hold = HOLD_WINDOWS;
      this.set(many >= GAIN * few ? MANY_LANES : FEW_LANES);
    } else if (rate >= FAST) {
      this.set(FEW_LANES);
    } else if (this.hold > 0) {
      this.hold -= 1;
    } else {
      this.before = rate;
      this.set(this.lanes === MANY_LANES ? FEW_LANES : MANY_LANES);
    }
  }

  private set(lanes: number): void {
    if (lanes === this.lanes) return;
    for (let more = lanes - this.lanes; more > 0; more -= 1) this.waiting.shift()?.();
    this.lanes = lanes;
    this.settling = true;
  }
}
