/**
 * What one device may send: messages and bytes per second, each with a burst that covers what follows a reconnect.
 * Beyond it telemetry is shed; a device that goes on is cut off for a while, so that it costs the others nothing.
 */
import { BudgetExceededError } from '../errors';
import { TokenBucket } from './token-bucket';

export interface BudgetOptions {
  messagesPerSecond: number;
  bytesPerSecond: number;
}

/** Seconds' worth that may come at once. */
const BURST_SECONDS = 8;
/** Messages beyond the budget, without a pause long enough to fill it again, after which the stream ends. */
const MOST_EXCESS = 100;

export class StreamBudget {
  private readonly messages: TokenBucket;
  private readonly bytes: TokenBucket;
  private excess = 0;

  constructor(private readonly options: BudgetOptions, now?: () => number) {
    this.messages = new TokenBucket(options.messagesPerSecond, options.messagesPerSecond * BURST_SECONDS, now);
    this.bytes = new TokenBucket(options.bytesPerSecond, options.bytesPerSecond * BURST_SECONDS, now);
  }

  /** false: beyond the budget. Throws BudgetExceededError where that goes on. */
  take(bytes: number): boolean {
    if (this.excess > 0 && this.messages.full && this.bytes.full) this.excess = 0;
    // Both are asked, so that what is refused for its size still counts as a message.
    const within = [this.messages.take(1), this.bytes.take(bytes)].every(Boolean);
    if (within) return true;
    this.excess += 1;
    if (this.excess > MOST_EXCESS) throw new BudgetExceededError(this.options.messagesPerSecond, this.options.bytesPerSecond);
    return false;
  }
}
