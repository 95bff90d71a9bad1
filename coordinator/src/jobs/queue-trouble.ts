/** What a queue's connection complains of: each trouble once, not once per attempt to mend it. */
import type { Logger } from '@moefleet/runtime';
import { reasonOf } from '../errors';

export class QueueTrouble {
  private lastReason = '';

  constructor(private readonly queue: string, private readonly log: Logger) {}

  readonly tell = (error: unknown): void => {
    const reason = reasonOf(error);
    if (reason !== this.lastReason) this.log.warn({ reason }, this.queue);
    this.lastReason = reason;
  };

  /** It works: the same trouble would be news again. */
  over(): void {
    this.lastReason = '';
  }
}
