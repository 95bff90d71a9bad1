/** How far what a device's tokens want has moved, and how far what they get is from it, from its record of expert use. */
import type { DeviceUse, UseSight } from '@moefleet/proto';
import { divergences, NO_USE, type UseHistogram } from './use-histogram';

/** Fewer tokens tell nothing. */
const LEAST_TOKENS = 256;

export interface UseBits {
  readonly timeMs: bigint;
  /** of the setting it was seen under */
  readonly lambda: number;
  readonly topJ: number;
  /** Jensen-Shannon bits per MoE layer beyond chance: wanted now against the reference, chosen against wanted; empty where too little is known */
  readonly workload: readonly number[];
  readonly bent: readonly number[];
  /** mean rise of the routers' entropy in bits; null where it is not known */
  readonly entropyChange: number | null;
}

export function useBits({ timeMs, lambda, topJ, experts, now, reference }: DeviceUse): UseBits {
  const [wanted, chosen, before] = [histogram(now, 'wanted', experts), histogram(now, 'chosen', experts), histogram(reference, 'wanted', experts)];
  return { timeMs, lambda, topJ, workload: divergencesOf(before, wanted), bent: divergencesOf(wanted, chosen), entropyChange: change(reference?.entropyBits ?? [], now?.entropyBits ?? []) };
}

/** None of too few tokens. */
export function divergencesOf(a: UseHistogram, b: UseHistogram): number[] {
  return Math.min(a.tokens, b.tokens) >= LEAST_TOKENS ? divergences(a, b) : [];
}

function histogram(sight: UseSight | undefined, name: 'wanted' | 'chosen', experts: number): UseHistogram {
  if (!sight) return NO_USE;
  return { tokens: sight.tokens, layers: sight.layers.map((layer) => Array.from({ length: experts }, (_, expert) => layer[name][expert] ?? 0)) };
}

function change(before: readonly number[], now: readonly number[]): number | null {
  return before.length === 0 || before.length !== now.length ? null : now.reduce((sum, bits, layer) => sum + bits - before[layer]!, 0) / now.length;
}
