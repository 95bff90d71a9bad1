/**
 * How experts are chosen and who leaves the cache: from what is asked for to what is in force. A pure function, and
 * part of effective-spec.ts: what makes no sense fails the spec (SpecError), what the device or the model cannot grant
 * is adjusted.
 *
 * All of it belongs to the model the spec was made for; with any other the model's own choice holds. `--max-lambda`
 * bounds how far routing may be bent. A method without a strength bends as far as it can, which is what lambda 1 says,
 * so a device that allows less runs the model's own choice instead.
 */
import { type DeviceSpec, Eviction as EvictionProto, Routing as RoutingProto } from '@moefleet/proto';
import type { Eviction, ModelInfo, RoutingSpec } from '../native';
import { SpecError } from './spec-error';

/** Protects a token's two best experts; what an unset `top_j` means. */
export const DEFAULT_TOP_J = 2;
/** Softmax mass up to which residents are preferred, where `mass_threshold` is unset. */
const DEFAULT_MASS_THRESHOLD = 0.9;

/** The methods a fleet can be asked for; `sensitivity` is for evaluation alone. */
export const ROUTING_OF: Readonly<Partial<Record<RoutingProto, RoutingSpec['routing']>>> = {
  [RoutingProto.ROUTING_UNSPECIFIED]: 'cache_prior', [RoutingProto.ROUTING_ORIGINAL]: 'original',
  [RoutingProto.ROUTING_CACHE_PRIOR]: 'cache_prior', [RoutingProto.ROUTING_MAX_RANK]: 'max_rank',
  [RoutingProto.ROUTING_CUMULATIVE_THRESHOLD]: 'cumulative_threshold', [RoutingProto.ROUTING_PRUNED]: 'pruned',
};
/** What this agent's engine can do. */
export const EVICTION_OF: Readonly<Partial<Record<EvictionProto, Eviction>>> = {
  [EvictionProto.EVICTION_UNSPECIFIED]: 'adaptive', [EvictionProto.EVICTION_LRU]: 'lru', [EvictionProto.EVICTION_LFU]: 'lfu', [EvictionProto.EVICTION_LFRU]: 'lfru',
  [EvictionProto.EVICTION_ADAPTIVE]: 'adaptive',
};

/** Every optional field of a RoutingSpec that a fleet can set, in force. */
export type EffectiveRouting = Omit<RoutingSpec, 'capacities' | 'generation' | 'rank' | 'seed'>
  & Required<Pick<RoutingSpec, 'lambdas' | 'topJs' | 'firstBiasedLayer' | 'biasPrefill' | 'eviction' | 'evictionHalfLifeTokens'>>;
export type Adjust = (field: string, asked: unknown, effective: unknown, reason: string) => void;

/** `forOther`: why the spec's values are not for this model; null where they are. */
export function effectiveRouting(spec: DeviceSpec, maxLambda: number, info: Pick<ModelInfo, 'experts' | 'topK' | 'moeLayers'>, forOther: string | null, adjust: Adjust): EffectiveRouting {
  const asked = readRouting(spec);
  const chosen = forOther === null ? asked : ownChoice(asked, info.topK, (field, was, now) => adjust(field, was, now, forOther));
  return {
    ...methodInForce(chosen, maxLambda, info, adjust),
    ...lambdaInForce(chosen, maxLambda, layersOr(spec, info), adjust),
    ...topJInForce(chosen, info, layersOr(spec, info), adjust),
    firstBiasedLayer: atMost('first_biased_layer', chosen.firstBiasedLayer, info.moeLayers.length, `the model has ${info.moeLayers.length} layers with experts`, adjust),
    biasPrefill: chosen.biasPrefill,
    eviction: chosen.eviction,
    evictionHalfLifeTokens: chosen.eviction === 'lfu' || chosen.eviction === 'lfru' ? chosen.halfLifeTokens : 0,
  };
}

/** Whether it is the model's own choice, token for token. */
export function bendsNothing({ routing, lambda, lambdas }: Pick<RoutingSpec, 'routing' | 'lambda' | 'lambdas'>): boolean {
  return routing === 'original' || (routing === 'cache_prior' && (lambdas ?? [lambda]).every((each) => each === 0));
}

interface Asked {
  method: RoutingSpec['routing'];
  lambda: number; lambdas: number[];
  /** undefined: the default */
  topJ: number | undefined; topJs: number[];
  maxRank: number | undefined; massThreshold: number;
  firstBiasedLayer: number; biasPrefill: boolean;
  eviction: Eviction; halfLifeTokens: number;
}

/** The spec's fields with their defaults; throws where one makes no sense whatever the model. */
function readRouting(spec: DeviceSpec): Asked {
  const method = ROUTING_OF[spec.routing];
  if (method === undefined) throw new SpecError(`routing: ${spec.routing} is unknown to this agent; update it, or choose ROUTING_CACHE_PRIOR`);
  const eviction = EVICTION_OF[spec.eviction];
  if (eviction === undefined) throw new SpecError(`eviction: ${EvictionProto[spec.eviction] ?? spec.eviction} is unknown to this agent's engine; update it, or choose EVICTION_LFU`);
  if (method === 'pruned' && (spec.topJ === 0 || spec.topJs.includes(0))) throw new SpecError('top_j: ROUTING_PRUNED needs 1 or more; with 0 a token whose experts all miss would use none');
  const halfLifeTokens = spec.evictionHalfLifeTokens ?? 0;
  if (!(halfLifeTokens >= 0 && halfLifeTokens < Infinity)) throw new SpecError(`eviction_half_life_tokens: ${halfLifeTokens} is no number of tokens; 0 means that uses do not age`);
  return {
    method, eviction, halfLifeTokens,
    lambda: share('lambda', spec.lambda ?? 0), lambdas: spec.lambdas.map((lambda) => share('lambdas', lambda)),
    topJ: spec.topJ, topJs: spec.topJs, maxRank: spec.maxRank,
    massThreshold: share('mass_threshold', spec.massThreshold ?? DEFAULT_MASS_THRESHOLD),
    firstBiasedLayer: spec.firstBiasedLayer ?? 0, biasPrefill: spec.biasPrefill ?? false,
  };
}

/** What a model runs that the spec was not made for. */
function ownChoice(asked: Asked, topK: number, adjust: (field: string, was: unknown, now: unknown) => void): Asked {
  const own: Asked = {
    ...asked, method: isGraded(asked.method) ? asked.method : 'original', lambda: 0, lambdas: [], topJ: undefined, topJs: [],
    firstBiasedLayer: 0, biasPrefill: false, eviction: 'adaptive', halfLifeTokens: 0,
  };
  const lambdas = asked.lambdas.length > 0 ? asked.lambdas : [asked.lambda];
  if (lambdas.some((lambda) => lambda !== 0)) adjust('lambda', lambdas, 0);
  const topJ = Math.min(DEFAULT_TOP_J, topK);
  if (asked.topJs.length > 0 || (asked.topJ ?? topJ) !== topJ) adjust('top_j', asked.topJs.length > 0 ? asked.topJs : asked.topJ, topJ);
  if (own.method !== asked.method) adjust('routing', asked.method, own.method);
  if (own.eviction !== asked.eviction) adjust('eviction', asked.eviction, own.eviction);
  return own;
}

/** Whether lambda says how far it bends; the model's own choice bends nothing. */
function isGraded(method: RoutingSpec['routing']): boolean {
  return method === 'cache_prior' || method === 'original';
}

function methodInForce({ method, maxRank, massThreshold }: Asked, maxLambda: number, info: Pick<ModelInfo, 'experts' | 'topK'>, adjust: Adjust) {
  if (!isGraded(method) && maxLambda < 1) {
    adjust('routing', method, 'original', `${method} has no strength to lower, and the device allows no more than lambda ${maxLambda} (--max-lambda)`);
    return { routing: 'original' as const };
  }
  if (method === 'cumulative_threshold') return { routing: method, massThreshold };
  if (method !== 'max_rank') return { routing: method };
  const possible = Math.min(Math.max(maxRank ?? info.experts, info.topK), info.experts);
  if (maxRank !== undefined && possible !== maxRank) adjust('max_rank', maxRank, possible, `ranks of this model go from ${info.topK}, its top-K, to ${info.experts}`);
  return { routing: method, maxRank: possible };
}

function lambdaInForce({ lambda, lambdas }: Asked, maxLambda: number, fits: Fits, adjust: Adjust): { lambda: number; lambdas: number[] | null } {
  const clamp = (value: number) => Math.min(value, maxLambda);
  const reason = 'the device allows no more (--max-lambda)';
  if (!fits('lambdas', lambdas, lambda, adjust)) {
    if (clamp(lambda) !== lambda) adjust('lambda', lambda, clamp(lambda), reason);
    return { lambda: clamp(lambda), lambdas: null };
  }
  const clamped = lambdas.map(clamp);
  if (clamped.some((each, i) => each !== lambdas[i])) adjust('lambdas', lambdas, clamped, reason);
  return { lambda: Math.min(...clamped), lambdas: clamped };
}

function topJInForce({ topJ, topJs }: Asked, { topK }: Pick<ModelInfo, 'topK'>, fits: Fits, adjust: Adjust): { topJ: number; topJs: number[] | null } {
  const reason = `the model selects ${topK} experts`;
  const one = topJ ?? Math.min(DEFAULT_TOP_J, topK);
  if (!fits('top_js', topJs, one, adjust)) return { topJ: atMost('top_j', one, topK, reason, adjust), topJs: null };
  const clamped = topJs.map((each) => Math.min(each, topK));
  if (clamped.some((each, i) => each !== topJs[i])) adjust('top_js', topJs, clamped, reason);
  return { topJ: Math.min(...clamped), topJs: clamped };
}

/** Whether a list stands in for the one value: it does where it has an entry per layer. */
type Fits = (field: string, list: readonly number[], otherwise: number, adjust: Adjust) => boolean;

function layersOr(spec: DeviceSpec, { moeLayers }: Pick<ModelInfo, 'moeLayers'>): Fits {
  return (field, list, otherwise, adjust) => {
    if (list.length === 0 || list.length === moeLayers.length) return list.length > 0;
    const told = `${field}: expected ${moeLayers.length} entries, one per MoE layer of the model, found ${list.length}`;
    if (spec.modelHash !== '') throw new SpecError(told);
    adjust(field, list, otherwise, `${told}; one value is used for all`);
    return false;
  };
}

function atMost(field: string, asked: number, most: number, reason: string, adjust: Adjust): number {
  if (asked <= most) return asked;
  adjust(field, asked, most, reason);
  return most;
}

/** Throws SpecError outside [0,1]. */
export function share(field: string, value: number): number {
  if (!(value >= 0 && value <= 1)) throw new SpecError(`${field}: ${value} is not in [0,1]`);
  return value;
}
