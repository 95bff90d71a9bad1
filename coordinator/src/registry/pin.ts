/**
 * A pin: an operator's value for one field of the spec, on a device, a group or the fleet. Stored as JSON; what comes
 * back from Redis is checked field by field.
 */
import { ROUTING_METHODS, type RoutingMethod } from '@moefleet/proto';
import { parseVersion, type Selector } from '@moefleet/runtime';
import { isSha256 } from '../names';

export interface PinBase {
  /** Counts up over the fleet: of two group pins that match a device, the one with the higher order wins. */
  readonly order: number;
  /** What the operator gave as the reason; may be empty. */
  readonly why: string;
  /** From then on it counts no more; absent: it stays. */
  readonly expiresMs?: number;
}

/** Values that belong to a model: they hold on devices that run one of these. Empty: on any (none was known). */
interface ModelBound {
  readonly modelHashes: readonly string[];
}

export type EvictionPolicy = 'lru' | 'lfu' | 'lfru' | 'adaptive';
export const EVICTION_POLICIES: readonly EvictionPolicy[] = ['lru', 'lfu', 'lfru', 'adaptive'];

/** Which experts are chosen: one value, as its parts trade together. What is absent is the agent's default. */
export interface RoutingChoice {
  /** absent: cache_prior */
  readonly method?: RoutingMethod;
  /** 0 where `lambdas` or the method says how far to bend */
  readonly lambda: number;
  readonly topJ: number | null;
  /** one per MoE layer of the model, in place of `lambda`, `topJ` */
  readonly lambdas?: readonly number[];
  readonly topJs?: readonly number[];
  readonly maxRank?: number;
  readonly massThreshold?: number;
  readonly firstBiasedLayer?: number;
  readonly biasPrefill?: boolean;
}

export interface LambdaPin extends PinBase, ModelBound, RoutingChoice {}
export interface EvictionPin extends PinBase, ModelBound { readonly policy: EvictionPolicy; /** null: uses do not age */ readonly halfLifeTokens: number | null }
export interface CachePin extends PinBase, ModelBound {
  readonly size: { readonly t: 'bytes'; readonly cacheBytes: number } | { readonly t: 'capacity'; readonly capacity: number };
}
export interface TracingPin extends PinBase { readonly traceRatio: number }
/** The release of the agent. */
export interface AgentPin extends PinBase { readonly version: string; readonly allowDowngrade: boolean }
/** A model of the store, and how it may be fetched; `quietHours` '': at any time. */
export interface ModelChoice {
  readonly name: string;
  /** hex; names the model, whatever becomes of its name */
  readonly manifestSha256: string;
  readonly bytes: number;
  /** absent: no bound */
  readonly bytesPerSecond?: number;
  readonly quietHours: string;
}
export interface ModelPin extends PinBase, ModelChoice {}
/** `sampling` null: off */
export interface SamplingPin extends PinBase { readonly sampling: { readonly windowTokens: number; readonly bytesPerHour: number; /** absent: no such bound */ readonly bytesPerDay?: number } | null }

export interface PinByField {
  lambda: LambdaPin;
  eviction: EvictionPin;
  cache: CachePin;
  tracing: TracingPin;
  sampling: SamplingPin;
  agent: AgentPin;
  model: ModelPin;
}
export type PinField = keyof PinByField;
export const PIN_FIELDS: readonly PinField[] = ['lambda', 'eviction', 'cache', 'tracing', 'sampling', 'agent', 'model'];

/** The pins of one place (a device, a group or the fleet). */
export type PinSet = { readonly [F in PinField]?: PinByField[F] };

export interface GroupPins {
  /** canonical text */
  readonly selector: string;
  readonly matches: Selector;
  readonly pins: PinSet;
}

export type PinPlace = { t: 'fleet' } | { t: 'group'; selector: string } | { t: 'device'; deviceId: string };

export function hasEnded({ expiresMs }: PinBase, nowMs: number): boolean {
  return expiresMs !== undefined && expiresMs <= nowMs;
}

/** Those that have not ended. */
export function standingPins(pins: PinSet, nowMs: number): PinSet {
  return Object.fromEntries(Object.entries(pins).filter(([, pin]) => !hasEnded(pin, nowMs))) as PinSet;
}

/** Tokens; longer than anything a device sees between two restarts. */
export const MOST_HALF_LIFE = 1e12;

/** Throws a TypeError that says what is wrong; `json` is whatever Redis held. */
export function decodePin<F extends PinField>(field: F, json: string): PinByField[F] {
  const value = record(JSON.parse(json), 'the pin');
  const base: PinBase = {
    order: number(value, 'order', 0, Number.MAX_SAFE_INTEGER), why: typeof value['why'] === 'string' ? value['why'] : '',
    ...(value['expiresMs'] === undefined ? {} : { expiresMs: number(value, 'expiresMs', 0, Number.MAX_SAFE_INTEGER) }),
  };
  const decoders: { [K in PinField]: () => PinByField[K] } = {
    lambda: () => ({ ...base, modelHashes: strings(value, 'modelHashes'), ...routingChoice(value) }),
    eviction: () => ({
      ...base, modelHashes: strings(value, 'modelHashes'), policy: oneOf(value, 'policy', EVICTION_POLICIES),
      halfLifeTokens: value['halfLifeTokens'] === null ? null : number(value, 'halfLifeTokens', 0, MOST_HALF_LIFE),
    }),
    cache: () => ({ ...base, modelHashes: strings(value, 'modelHashes'), size: cacheSize(record(value['size'], 'size')) }),
    tracing: () => ({ ...base, traceRatio: number(value, 'traceRatio', 0, 1) }),
    agent: () => ({ ...base, version: parseVersion(value['version']).text, allowDowngrade: value['allowDowngrade'] === true }),
    model: () => ({ ...base, ...modelChoice(value) }),
    sampling: () => ({ ...base, sampling: value['sampling'] === null ? null : sampling(record(value['sampling'], 'sampling')) }),
  };
  return decoders[field]();
}

function modelChoice(value: Record<string, unknown>): ModelChoice {
  const { name, manifestSha256, quietHours } = value;
  if (typeof name !== 'string' || typeof quietHours !== 'string') throw new TypeError('name or quietHours is no text');
  if (!isSha256(manifestSha256)) throw new TypeError('manifestSha256 is no SHA-256');
  return {
    name, manifestSha256, quietHours, bytes: number(value, 'bytes', 0, Number.MAX_SAFE_INTEGER),
    ...(value['bytesPerSecond'] === undefined ? {} : { bytesPerSecond: number(value, 'bytesPerSecond', 1, Number.MAX_SAFE_INTEGER) }),
  };
}

function routingChoice(value: Record<string, unknown>): RoutingChoice {
  const optional = <T>(field: string, read: () => T) => (value[field] === undefined ? {} : { [field]: read() });
  return {
    lambda: number(value, 'lambda', 0, 1),
    topJ: value['topJ'] === null || value['topJ'] === undefined ? null : number(value, 'topJ', 0, 0xffff),
    ...optional('method', () => oneOf(value, 'method', ROUTING_METHODS)),
    ...optional('lambdas', () => numbers(value, 'lambdas', 0, 1)),
    ...optional('topJs', () => numbers(value, 'topJs', 0, 0xffff)),
    ...optional('maxRank', () => number(value, 'maxRank', 1, 0xffff)),
    ...optional('massThreshold', () => number(value, 'massThreshold', 0, 1)),
    ...optional('firstBiasedLayer', () => number(value, 'firstBiasedLayer', 0, 0xffff)),
    ...optional('biasPrefill', () => value['biasPrefill'] === true),
  };
}

function cacheSize(value: Record<string, unknown>): CachePin['size'] {
  if (value['t'] === 'bytes') return { t: 'bytes', cacheBytes: number(value, 'cacheBytes', 0, Number.MAX_SAFE_INTEGER) };
  if (value['t'] === 'capacity') return { t: 'capacity', capacity: number(value, 'capacity', 1, 0xffff) };
  throw new TypeError('size is neither bytes nor capacity');
}

function sampling(value: Record<string, unknown>): NonNullable<SamplingPin['sampling']> {
  return {
    windowTokens: number(value, 'windowTokens', 0, 0xffff_ffff), bytesPerHour: number(value, 'bytesPerHour', 0, Number.MAX_SAFE_INTEGER),
    ...(value['bytesPerDay'] === undefined ? {} : { bytesPerDay: number(value, 'bytesPerDay', 0, Number.MAX_SAFE_INTEGER) }),
  };
}

function record(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new TypeError(`${what} is no object`);
  return value as Record<string, unknown>;
}

function number(value: Record<string, unknown>, field: string, min: number, max: number): number {
  const found = value[field];
  if (typeof found !== 'number' || !(found >= min && found <= max)) throw new TypeError(`${field} is no number from ${min} to ${max}`);
  return found;
}

function numbers(value: Record<string, unknown>, field: string, min: number, max: number): number[] {
  const found = value[field];
  if (!Array.isArray(found) || !found.every((item) => typeof item === 'number' && item >= min && item <= max)) throw new TypeError(`${field} is no list of numbers from ${min} to ${max}`);
  return found as number[];
}

function oneOf<T extends string>(value: Record<string, unknown>, field: string, names: readonly T[]): T {
  const found = names.find((name) => name === value[field]);
  if (found === undefined) throw new TypeError(`${field} is none of ${names.join(', ')}`);
  return found;
}

function strings(value: Record<string, unknown>, field: string): string[] {
  const found = value[field];
  if (!Array.isArray(found) || !found.every((item) => typeof item === 'string')) throw new TypeError(`${field} is no list of texts`);
  return found;
}
