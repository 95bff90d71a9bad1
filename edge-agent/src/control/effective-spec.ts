/**
 * From what is asked for to what is in force, as a pure function of the spec, the device's limits and the model. The
 * limits clamp last. A value that makes no sense fails the spec as a whole (SpecError); a value the device or the
 * model cannot grant is adjusted, and each adjustment says why.
 */
import type { Adjustment, DeviceSpec, RouterSampling } from '@moefleet/proto';
import { capacitiesForBytes } from '../engine';
import type { ModelInfo, Prefetch } from '../native';
import { type Adjust, type EffectiveRouting, effectiveRouting, share } from './effective-routing';
import { SpecError } from './spec-error';

const MAX_WINDOW_TOKENS = 4096;

export interface Limits {
  maxCacheBytes: number;
  /** in [0,1] */
  maxLambda: number;
  /** share of requests traced where the spec does not say */
  traceRatio: number;
  /** the device's own affair, as its disk decides whether it pays; default off */
  prefetch?: Prefetch;
}

export interface Effective {
  routing: EffectiveRouting & { capacities: number[]; generation: number };
  /** bytes of experts that `routing.capacities` may hold */
  cacheBytes: number;
  /** what they would be were memory not short */
  wantedBytes: number;
  traceRatio: number;
  routerSampling: RouterSampling | null;
  adjustments: Adjustment[];
}

/** Most bytes of experts for as long as memory is short, and why. */
export interface CacheLimit { bytes: number; reason: string; }

/** The model does not fit the device's own limit. */
export class LimitError extends Error {
  override readonly name = 'LimitError';
}

export type Model = { hash: string; info: Pick<ModelInfo, 'experts' | 'topK' | 'expertBytes' | 'moeLayers' | 'tokenCycleBytes' | 'path'> };

/** What reads ahead wait in counts against the device's limit; where that would not leave one token's experts, nothing is read ahead. */
function shareOut({ maxCacheBytes, prefetch = 'off' }: Limits, { expertBytes, topK, tokenCycleBytes }: Model['info']): { maxCacheBytes: number; prefetch: Prefetch } {
  const left = maxCacheBytes - Math.max(1, Math.floor(topK / 2)) * Math.max(...expertBytes);
  return prefetch === 'off' || left < tokenCycleBytes ? { maxCacheBytes, prefetch: 'off' } : { maxCacheBytes: left, prefetch };
}

/** What `maxCacheBytes` means for a model, experts per MoE layer. Throws LimitError below one token cycle. */
export function maxCapacities(limits: Limits, { info }: Model): number[] {
  if (limits.maxCacheBytes < info.tokenCycleBytes) {
    throw new LimitError(
      `${info.path}: one token touches ${info.tokenCycleBytes} bytes of experts (${info.topK} of ${info.experts} in each of ` +
      `${info.expertBytes.length} layers), but --max-cache allows ${limits.maxCacheBytes}; raise it to ${info.tokenCycleBytes} at least`,
    );
  }
  return capacitiesForBytes(info, shareOut(limits, info).maxCacheBytes);
}

/**
 * `generation` is stamped on what the engine does under it; `shortage` null: memory is not short. Throws SpecError or
 * LimitError.
 */
export function effectiveSpec(spec: DeviceSpec, generation: number, limits: Limits, model: Model, shortage: CacheLimit | null = null): Effective {
  const { info } = model;
  const adjustments: Adjustment[] = [];
  const adjust: Adjust = (field, asked, effective, reason) => adjustments.push({ field, asked: String(asked), effective: String(effective), reason });
  const forOther = spec.modelHash !== '' && spec.modelHash !== model.hash
    ? `the spec was made for model ${spec.modelHash.slice(0, 12)}, ${model.hash.slice(0, 12)} is loaded` : null;
  const routing = effectiveRouting(spec, limits.maxLambda, info, forOther, adjust);
  const wanted = chooseCapacities(spec, limits, model, forOther, adjust);
  const wantedBytes = cacheBytesOf(wanted, info.expertBytes);
  const capacities = shortage ? shrinkToBytes(wanted, info.expertBytes, info.topK, shortage.bytes) : wanted;
  const cacheBytes = cacheBytesOf(capacities, info.expertBytes);
  if (cacheBytes < wantedBytes) adjust(spec.cache?.$case === 'capacities' ? 'capacities' : 'cache_bytes', wantedBytes, cacheBytes, `memory is short: ${shortage!.reason}`);
  const { prefetch } = shareOut(limits, info);
  return {
    routing: { ...routing, capacities, generation, ...(prefetch === 'off' ? {} : { prefetch }) },
    cacheBytes, wantedBytes,
    traceRatio: spec.traceRatio === undefined ? limits.traceRatio : share('trace_ratio', spec.traceRatio),
    routerSampling: samplingOf(spec.routerSampling),
    adjustments,
  };
}

function chooseCapacities(spec: DeviceSpec, limits: Limits, model: Model, forOther: string | null, adjust: Adjust): number[] {
  const { info } = model;
  const most = maxCapacities(limits, model);
  const { maxCacheBytes } = shareOut(limits, info);
  if (spec.cache === undefined) return most;
  if (spec.cache.$case === 'cacheBytes') {
    const asked = Number(spec.cache.value);
    const granted = Math.min(Math.max(asked, info.tokenCycleBytes), maxCacheBytes);
    if (granted > asked) adjust('cache_bytes', asked, granted, 'one token touches this much');
    if (granted < asked) adjust('cache_bytes', asked, granted, 'the device allows no more (--max-cache)');
    return capacitiesForBytes(info, granted);
  }
  const asked = spec.cache.value.experts;
  if (forOther !== null) {
    adjust('capacities', asked, most, forOther);
    return most;
  }
  if (asked.length !== info.expertBytes.length) {
    const told = `capacities: expected ${info.expertBytes.length} entries, one per MoE layer of the model, found ${asked.length}`;
    if (spec.modelHash !== '') throw new SpecError(told);
    adjust('capacities', asked, most, `${told}; the device's own limit is used`);
    return most;
  }
  const possible = asked.map((count) => Math.min(Math.max(count, info.topK), info.experts));
  if (possible.some((count, i) => count !== asked[i])) adjust('capacities', asked, possible, `each layer holds ${info.topK} to ${info.experts} experts of this model`);
  const fitting = shrinkToBytes(possible, info.expertBytes, info.topK, maxCacheBytes);
  if (fitting.some((count, i) => count !== possible[i])) adjust('capacities', possible, fitting, `the device allows no more than ${maxCacheBytes} bytes (--max-cache)`);
  return fitting;
}

/** Takes experts from the layer that has most of them until the rest fits; no layer falls below `topK`. */
export function shrinkToBytes(capacities: readonly number[], expertBytes: readonly number[], topK: number, maxBytes: number): number[] {
  const result = [...capacities];
  let bytes = cacheBytesOf(result, expertBytes);
  while (bytes > maxBytes) {
    let largest = 0;
    for (let i = 1; i < result.length; i += 1) if (result[i]! > result[largest]!) largest = i;
    if (result[largest]! <= topK) break;
    result[largest]! -= 1;
    bytes -= expertBytes[largest]!;
  }
  return result;
}

export function cacheBytesOf(capacities: readonly number[], expertBytes: readonly number[]): number {
  return capacities.reduce((sum, count, i) => sum + count * expertBytes[i]!, 0);
}

function samplingOf(sampling: RouterSampling | undefined): RouterSampling | null {
  if (!sampling) return null;
  const { windowTokens } = sampling;
  if (windowTokens < 1 || windowTokens > MAX_WINDOW_TOKENS) {
    throw new SpecError(`router_sampling.window_tokens: ${windowTokens} is not in [1,${MAX_WINDOW_TOKENS}]`);
  }
  return sampling;
}
