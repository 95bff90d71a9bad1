/**
 * The least time a token can take on a disk: what had to be read at the speed at which the disk reads it, plus the
 * arithmetic with every expert in memory. An engine that reads while it computes can go below that sum, towards the
 * larger of the two terms.
 */
import type { DecodedToken } from './decoded';

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

export interface Rhythm { misses: number[]; pauseNs: number; }

const MOST_TOKENS = 256;

/**
 * How an engine asks the disk: what each token missed, and the arithmetic of a layer after its reads. A throttle that lets
 * bursts through gives a sparse reader a faster disk than a busy one, so each is held against its own.
 */
export function rhythmOf(tokens: readonly DecodedToken[], layers: number, computeMs: number): Rhythm {
  return { misses: tokens.slice(0, MOST_TOKENS).map((token) => token.engine?.misses ?? 0), pauseNs: Math.round((computeMs * 1e6) / layers) };
}
