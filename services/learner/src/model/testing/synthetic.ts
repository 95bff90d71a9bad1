/** Surfaces and telemetry written from formulas, so that a test knows the truth. */
import { Routing, TelemetryFrame } from '@moefleet/proto';
import type { MeasuredDomain, MeasuredPoint } from '../quality-surface';
import type { ModelShape } from '../setting';
import type { TelemetryWindow } from '../telemetry-window';

export const SHAPE: ModelShape = { experts: 32, topK: 4, expertBytes: [1 << 20, 1 << 20] };

/** Convex in λ and in the capacity, as the real ones are. */
export const trueLoss = (lambda: number, topJ: number, capacity: number) => 0.1 * lambda ** 2 * ((32 - capacity) / 16) ** 2 * (1.5 - 0.4 * topJ);
export const trueMissRate = (lambda: number, topJ: number, capacity: number) => 0.3 * ((32 - capacity) / 16) ** 2 * Math.exp(-(4 - topJ) * lambda);

export function point(lambda: number, topJ: number, capacity: number, changed: Partial<MeasuredPoint> = {}): MeasuredPoint {
  return {
    routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities: SHAPE.expertBytes.map(() => capacity), loss: trueLoss(lambda, topJ, capacity), stderr: lambda === 0 ? 0 : 0.0004,
    missRate: trueMissRate(lambda, topJ, capacity), massLost: lambda * 0.1, ...changed,
  };
}

export function domain(name: string, { capacities = [8, 16, 24], lambdas = [0.1, 0.2, 0.3, 0.4], topJs = [1, 2], harder = 1 } = {}): MeasuredDomain {
  return {
    domain: name,
    points: capacities.flatMap((capacity) => [point(0, 0, capacity), ...topJs.flatMap((topJ) => lambdas.map((lambda) =>
      point(lambda, topJ, capacity, { loss: trueLoss(lambda, topJ, capacity) * harder })))]),
  };
}

/** One window of a device with these true figures; `noise` is a factor on the time. */
export function speedWindow({ computeMs = 20, msPerMib = 2, mibPerToken = 3, tokens = 200, noise = 1, stall = true } = {}): TelemetryWindow {
  const perToken = (computeMs + msPerMib * mibPerToken) * noise;
  const missBytes = mibPerToken * tokens * 2 ** 20;
  return {
    tokens, decodeNs: perToken * 1e6 * tokens, missBytes, stallNsPerByte: stall ? (msPerMib * noise * 1e6) / 2 ** 20 : null,
    readNs: 1e6, readBytes: 1 << 20, layers: [], massLost: 0.01,
  };
}

/** A frame of a device that has decoded `tokens` at this miss rate since its boot, without contradiction. */
export function frame({ sequence = 1, tokens = 0, missRate = 0.25, msPerToken = 20, timeMs = sequence * 10_000 }: { sequence?: number; tokens?: number; missRate?: number; msPerToken?: number; timeMs?: number } = {}): TelemetryFrame {
  const slots = tokens * SHAPE.topK;
  const misses = Math.round(slots * missRate);
  return TelemetryFrame.fromPartial({
    sequence: BigInt(sequence), timeMs: BigInt(timeMs), decodeTokens: BigInt(tokens), decodeNs: BigInt(Math.round(tokens * msPerToken * 1e6)),
    stallNs: BigInt(misses * 1e6), flashBytes: BigInt(misses * 2 * (1 << 20)), flashReads: BigInt(misses * 2), readMicrosLog2: [0n, BigInt(misses * 2)],
    layers: SHAPE.expertBytes.map((_, layer) => ({
      layer, capacity: 16, resident: 16, hits: BigInt(slots - misses), misses: BigInt(misses), swaps: 0n, prefillHits: 0n, prefillMisses: 0n,
      massLost: tokens * 0.01, events: BigInt(tokens), rangeMean: 3,
    })),
  });
}

/** Uniform in [0,1), the same for a seed everywhere (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal (Box and Muller). */
export function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
