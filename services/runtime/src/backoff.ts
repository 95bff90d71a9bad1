/**
 * Full-jitter exponential backoff: a wait drawn evenly from [0, min(max, base * 2^attempt)], so that a fleet that
 * lost its coordinator does not come back in step.
 */
export interface BackoffOptions {
  baseMs: number;
  maxMs: number;
  /** in [0,1) */
  random: () => number;
}

/** Milliseconds to wait before try number `attempt` (0 is the first retry); never below a tenth of `baseMs`. */
export function backoffMs(attempt: number, options: BackoffOptions): number {
  const ceiling = Math.min(options.maxMs, options.baseMs * 2 ** Math.min(attempt, 30));
  return Math.max(options.baseMs / 10, options.random() * ceiling);
}
