/**
 * How fast devices are let in: a token per hello, a bounded number that wait for theirs, and the rest is told when to
 * come again, spread over the time that the crowd will take. So a coordinator that all devices come to at once stays
 * able to serve those that are in.
 */
import { OverloadedError } from '../errors';
import { TokenBucket } from './token-bucket';

export interface AdmissionOptions {
  hellosPerSecond: number;
  mostWaitMs?: number;
  random?: () => number;
  now?: () => number;
}

const MOST_WAIT_MS = 4000;
const MOST_RETRY_MS = 30_000;

export class Admission {
  private readonly bucket: TokenBucket;
  private readonly waiting: (() => void)[] = [];
  private readonly mostWaiting: number;
  private readonly random: () => number;
  private timer: NodeJS.Timeout | undefined;
  /** Refused lately: what the crowd outside is estimated by. Halved every second. */
  private crowd = 0;
  private crowdMs = 0;
  private readonly now: () => number;

  constructor(private readonly options: AdmissionOptions) {
    this.now = options.now ?? (() => performance.now());
    this.random = options.random ?? Math.random;
    this.bucket = new TokenBucket(options.hellosPerSecond, options.hellosPerSecond, this.now);
    this.mostWaiting = Math.max(1, Math.floor(options.hellosPerSecond * (options.mostWaitMs ?? MOST_WAIT_MS) / 1000));
  }

  get queue(): number {
    return this.waiting.length;
  }

  /** Resolves when it is this one's turn; throws OverloadedError where too many wait. */
  async enter(): Promise<void> {
    if (this.waiting.length === 0 && this.bucket.take(1)) return;
    if (this.waiting.length >= this.mostWaiting) throw new OverloadedError(this.waiting.length, this.retryAfterMs());
    await new Promise<void>((resolve) => {
      this.waiting.push(resolve);
      this.timer ??= setInterval(() => this.letIn(), 1000 / Math.min(this.options.hellosPerSecond, 50));
    });
  }

  /** Lets all that wait in at once: they find what they came to closed. */
  close(): void {
    clearInterval(this.timer);
    for (const enter of this.waiting.splice(0)) enter();
  }

  private letIn(): void {
    while (this.waiting.length > 0 && this.bucket.take(1)) this.waiting.shift()!();
    if (this.waiting.length > 0) return;
    clearInterval(this.timer);
    this.timer = undefined;
  }

  private retryAfterMs(): number {
    const nowMs = this.now();
    this.crowd = this.crowd * 0.5 ** ((nowMs - this.crowdMs) / 5000) + 1;
    this.crowdMs = nowMs;
    const perMs = this.options.hellosPerSecond / 1000;
    const drainMs = this.waiting.length / perMs;
    return Math.round(Math.min(MOST_RETRY_MS, drainMs / 2 + this.random() * (1000 + this.crowd / perMs)));
  }
}
