/**
 * The least time a token can take on a disk: what had to be read at the speed at which the disk reads it, plus the
 * arithmetic with every expert in memory. An engine that reads while it computes can go below that sum, towards the
 * larger of the two terms.
 */

export interface Floor {
  computeMs: number;
  readMs: number;
  sumMs: number;
  largerMs: number;
  /** measured time over each */
  overSum: number;
  overLarger: number;
}

export function floorOf(msPerToken: number, computeMs: number, bytesPerToken: number, diskBytesPerSecond: number): Floor {
  const readMs = bytesPerToken === 0 ? 0 : (bytesPerToken / diskBytesPerSecond) * 1e3;
  const sumMs = computeMs + readMs;
  const largerMs = Math.max(computeMs, readMs);
  return { computeMs, readMs, sumMs, largerMs, overSum: msPerToken / sumMs, overLarger: msPerToken / largerMs };
}

export interface Pacing { burstBytes: number; pauseNs: number; }

/**
 * The rhythm in which an engine asks the disk: the misses of one layer at once, then the arithmetic until the next. A
 * throttle that lets bursts through gives a sparse reader a faster disk than a busy one, so each is held against its own.
 */
export function pacingOf(bytesPerToken: number, expertBytes: number, layers: number, computeMs: number): Pacing {
  const burstBytes = Math.max(expertBytes, Math.round(bytesPerToken / layers));
  return { burstBytes, pauseNs: Math.round(computeMs * 1e6 * (burstBytes / bytesPerToken)) };
}
