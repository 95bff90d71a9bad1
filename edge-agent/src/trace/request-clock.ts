/**
 * Monotonic to wall time for one request, from one pair of readings at its begin, so that durations and order within
 * a trace stay exact when the wall clock is set meanwhile. Nanoseconds since 1970 exceed 2^53, hence bigint.
 */
import type { HrTime } from '@opentelemetry/api';

const NS_PER_S = 1_000_000_000n;

export interface TimeSource {
  /** CLOCK_MONOTONIC, the clock of the engine's events */
  monotonicNs(): bigint;
  /** milliseconds since 1970 */
  wallMs(): number;
}

export const SYSTEM_TIME: TimeSource = {
  monotonicNs: () => process.hrtime.bigint(),
  wallMs: () => Date.now(),
};

export class RequestClock {
  private readonly offsetNs: bigint;

  constructor(private readonly time: TimeSource) {
    this.offsetNs = BigInt(Math.round(time.wallMs() * 1e3)) * 1000n - time.monotonicNs();
  }

  nowNs(): bigint {
    return this.time.monotonicNs();
  }

  /** `monotonicNs` of an engine event or of `nowNs`; as OpenTelemetry's [seconds, nanoseconds]. */
  wall(monotonicNs: bigint | number): HrTime {
    const ns = (typeof monotonicNs === 'bigint' ? monotonicNs : BigInt(Math.round(monotonicNs))) + this.offsetNs;
    return [Number(ns / NS_PER_S), Number(ns % NS_PER_S)];
  }
}
