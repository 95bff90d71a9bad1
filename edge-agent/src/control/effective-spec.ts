/**
 * From what is asked for to what is in force, as a pure function of the spec, the device's limits and the model. The
 * limits clamp last. A value that makes no sense fails the spec as a whole (SpecError); a value the device or the
 * model cannot grant is adjusted, and each adjustment says why.
 */
import { type Adjustment, type DeviceSpec, Routing as RoutingProto, type RouterSampling } from '@moefleet/proto';
import { capacitiesForBytes } from '../engine';
import type { ModelInfo, RoutingSpec } from '../native';

/** Protects a token's two best experts; what an unset `top_j` means. */
export const DEFAULT_TOP_J = 2;
const MAX_WINDOW_TOKENS = 4096;

export interface Limits {
  maxCacheBytes: number;
  /** in [0,1] */
  maxLambda: number;
  /** share of requests traced where the spec does not say */
  traceRatio: number;
}

export interface Effective {
  routing: RoutingSpec;
  /** bytes of experts that `routing.capacities` may hold */
  cacheBytes: number;
  traceRatio: number;
  routerSampling: RouterSampling | null;
  adjustments: Adjustment[];
}

/** The spec itself makes no sense; nothing of it is applied. */
export class SpecError extends Error {
  override readonly name = 'SpecError';
}

/** The model does not fit the device's own limit. */
export class LimitError extends Error {
  override readonly name = 'LimitError';
}

export type Model = { hash: string; info: Pick<ModelInfo, 'experts' | 'topK' | 'expertBytes' | 'moeLayers' | 'tokenCycleBytes' | 'path'> };

/** What `maxCacheBytes` means for a model, experts per MoE layer. Throws LimitError below one token cycle. */
export function maxCapacities(limits: Limits, { info }: Model): number[] {
  if (limits.maxCacheBytes < info.tokenCycleBytes) {
    throw new LimitError(
      `${info.path}: one token touches ${info.tokenCycleBytes} bytes of experts (${info.topK} of ${info.experts} in each of ` +
      `${info.expertBytes.length} layers), but --max-cache allows ${limits.maxCacheBytes}; raise it to ${info.tokenCycleBytes} at least`,
    );
  }
  return capacitiesForBytes(info, limits.maxCacheBytes);
}

/** Throws SpecError or LimitError. `generation` is stamped on what the engine does under it. */
export function effectiveSpec(spec: DeviceSpec, generation: number, limits: Limits, model: Model): Effective {
  const { info } = model;
  const adjustments: Adjustment[] = [];
  const adjust = (field: string, asked: unknown, effective: unknown, reason: string) =>
    adjustments.push({ field, asked: String(asked), effective: String(effective), reason });
  const otherModel = spec.modelHash !== '' && spec.modelHash !== model.hash;
  const forOther = `the spec was made for model ${spec.modelHash.slice(0, 12)}, ${model.hash.slice(0, 12)} is loaded`;

  const askedLambda = share('lambda', spec.lambda ?? 0);
  let lambda = askedLambda;
  if (otherModel && lambda !== 0) adjust('lambda', lambda, (lambda = 0), forOther);
  if (lambda > limits.maxLambda) adjust('lambda', lambda, (lambda = limits.maxLambda), 'the device allows no more (--max-lambda)');

  const defaultTopJ = Math.min(DEFAULT_TOP_J, info.topK);
  let topJ = spec.topJ ?? defaultTopJ;
  if (otherModel && topJ !== defaultTopJ) adjust('top_j', topJ, (topJ = defaultTopJ), forOther);
  if (topJ > info.topK) adjust('top_j', topJ, (topJ = info.topK), `the model selects ${info.topK} experts`);

  const capacities = chooseCapacities(spec, limits, model, otherModel ? forOther : null, adjust);
  return {
    routing: { routing: routingOf(spec.routing), lambda, topJ, capacities, generation },
    cacheBytes: cacheBytesOf(capacities, info.expertBytes),
    traceRatio: spec.traceRatio === undefined ? limits.traceRatio : share('trace_ratio', spec.traceRatio),
    routerSampling: samplingOf(spec.routerSampling),
    adjustments,
  };
}

type Adjust = (field: string, asked: unknown, effective: unknown, reason: string) => void;

function chooseCapacities(spec: DeviceSpec, limits: Limits, model: Model, forOther: string | null, adjust: Adjust): number[] {
  const { info } = model;
  const most = maxCapacities(limits, model);
  if (spec.cache === undefined) return most;
  if (spec.cache.$case === 'cacheBytes') {
    const asked = Number(spec.cache.value);
    const granted = Math.min(Math.max(asked, info.tokenCycleBytes), limits.maxCacheBytes);
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
  const fitting = shrinkToBytes(possible, info.expertBytes, info.topK, limits.maxCacheBytes);
  if (fitting.some((count, i) => count !== possible[i])) adjust('capacities', possible, fitting, `the device allows no more than ${limits.maxCacheBytes} bytes (--max-cache)`);
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

function share(field: string, value: number): number {
  if (!(value >= 0 && value <= 1)) throw new SpecError(`${field}: ${value} is not in [0,1]`);
  return value;
}

function routingOf(routing: RoutingProto): RoutingSpec['routing'] {
  switch (routing) {
    case RoutingProto.ROUTING_UNSPECIFIED:
    case RoutingProto.ROUTING_CACHE_PRIOR: return 'cache_prior';
    case RoutingProto.ROUTING_ORIGINAL: return 'original';
    default: throw new SpecError(`routing: ${routing} is unknown to this agent; update it, or choose ROUTING_CACHE_PRIOR`);
  }
}

function samplingOf(sampling: RouterSampling | undefined): RouterSampling | null {
  if (!sampling) return null;
  const { windowTokens } = sampling;
  if (windowTokens < 1 || windowTokens > MAX_WINDOW_TOKENS) {
    throw new SpecError(`router_sampling.window_tokens: ${windowTokens} is not in [1,${MAX_WINDOW_TOKENS}]`);
  }
  return sampling;
}
