/**
 * What the registry holds about a device, and how it is read from Redis. Nothing found there is trusted: a part that
 * cannot be decoded is left out and told through `damaged`, so that one broken value neither hides the device nor
 * stops the coordinator.
 */
import { createHash } from 'node:crypto';
import { DeviceInfo, DeviceSpec, ModelState, Proposal, Reported, TelemetryFrame } from '@moefleet/proto';
import type { Labels } from '@moefleet/runtime';
import { reasonOf } from '../errors';
import { DecodeCache } from './decode-cache';
import { decodeLabels, mergeLabels } from './device-labels';
import { decodeIdentity, type IdentityRecord } from './identity-record';
import { decodePin, PIN_FIELDS, type PinSet, standingPins } from './pin';
import { decodeMarks, type StagedMarks } from './staged-value';

/** Generations beyond it would not be exact in Lua. No device gets there by counting. */
export const MAX_GENERATION = 2n ** 52n;

export type DesiredRecord =
  | { t: 'none' }
  | { t: 'set'; generation: bigint; spec: Buffer; decoded: DeviceSpec; /** hex SHA-256 of `spec` */ hash: string; origin: string }
  /** something is there that cannot be a desired spec; the next write replaces it */
  | { t: 'damaged'; generation: bigint };

export interface LeaseHolder { installId: string; bootId: string; coordinatorId: string; hostname: string }

export interface DeviceRecord {
  id: string;
  /** null: offline */
  lease: LeaseHolder | null;
  bootId: string;
  lastSeenMs: number;
  info: DeviceInfo | undefined;
  /** Set by operators. */
  operatorLabels: Labels;
  /** In force, for groups and selectors: what it reports, under what operators have set. */
  labels: Labels;
  /** The last model it had loaded, kept while it has none. */
  model: ModelState | undefined;
  reported: Reported | undefined;
  telemetry: TelemetryFrame | undefined;
  desired: DesiredRecord;
  /** The device runs the spec of this generation and nothing newer is on its way to it. */
  settledGeneration: bigint;
  /** null: it has never enrolled, and nothing is known against it */
  identity: IdentityRecord | null;
  pins: PinSet;
  /** Rollouts whose value counts for it already. */
  marks: StagedMarks;
  /** The learner's value for the model the device runs. */
  learned: Proposal | undefined;
  /** A value of the learner's for that model that was taken back: `reason` says why, `timeMs` when. */
  refused: Proposal | undefined;
  /** What the learner said last, with or without a value. */
  lastProposal: Proposal | undefined;
  /** parts that could not be decoded: key and why */
  damaged: string[];
}

/** What a change of the fleet's settings asks of a device. */
export type ChangeSubject = Pick<DeviceRecord, 'id' | 'model' | 'labels'>;

/** What a change for all asks of a device. */
export type FleetSubject = Pick<ChangeSubject, 'id' | 'model'> & {
  /** what it shall run; null where it has settings of its own, or the registry is behind it, so that all of it has to be read */
  plain: { generation: bigint; /** hex, '' for none */ hash: string; online: boolean } | null;
};

/** What its desired spec is made of, and what tells whether it runs that. */
export type SpecSubject = ChangeSubject & Pick<DeviceRecord, 'reported' | 'desired' | 'settledGeneration' | 'pins' | 'marks' | 'learned' | 'damaged'>;

/** What tells how far a device has come with a spec. */
export interface DeviceProgress {
  online: boolean;
  reported: Reported | undefined;
  settledGeneration: bigint;
  /** null where there is none, or it is damaged */
  desired: { generation: bigint; hash: string; origin: string } | null;
}

export type RawHash = Record<string, Buffer>;

/** Most devices run one of few models, and one of few specs. */
const models = new DecodeCache((bytes) => ModelState.decode(bytes));
const specs = new DecodeCache((bytes) => ({ hash: sha256Hex(bytes), decoded: decodeOrNothing(DeviceSpec, bytes) }));

/** The same, with a model that all who run it have in common. */
export function shareModel(info: DeviceInfo): DeviceInfo {
  return info.model ? { ...info, model: models.decode(Buffer.from(ModelState.encode(info.model).finish())) } : info;
}

export interface RawSubject { state: RawHash; desired: RawHash; pins: RawHash; learned: RawHash; labels: RawHash }

export interface RawDevice extends RawSubject {
  /** bytes of the latest telemetry frame; coordinators of earlier releases keep it in `state` */
  frame: Buffer | null;
  lease: RawHash; identity: RawHash;
}

/** Without pins that have ended by `nowMs`. */
export function decodeDevice(id: string, raw: RawDevice, nowMs: number): DeviceRecord {
  const damaged: string[] = [];
  const info = message(DeviceInfo, raw.state, 'info', damaged);
  const operatorLabels = decodeLabels(raw.labels, damaged);
  const parts = decodeSpecParts(raw, () => info, nowMs, damaged);
  const { model } = parts;
  return {
    ...parts,
    id,
    lease: raw.lease['installId'] ? {
      installId: text(raw.lease, 'installId'), bootId: text(raw.lease, 'bootId'),
      coordinatorId: text(raw.lease, 'coordinatorId'), hostname: text(raw.lease, 'hostname'),
    } : null,
    bootId: text(raw.state, 'bootId'),
    lastSeenMs: Number(decodeCount(raw.state['lastSeenMs']) ?? 0n),
    info,
    operatorLabels,
    labels: mergeLabels(info?.labels ?? {}, operatorLabels),
    telemetry: message(TelemetryFrame, raw.frame ? { telemetry: raw.frame } : raw.state, 'telemetry', damaged),
    identity: decodeIdentity(id, raw.identity),
    refused: model ? message(Proposal, raw.learned, refusedField(model.hash), damaged) : undefined,
    lastProposal: message(Proposal, raw.learned, 'last', damaged),
    damaged,
  };
}

/** The same, no more than its spec is made of; what the device says of itself is decoded where it is asked for. */
export function decodeSpecSubject(id: string, raw: RawSubject, nowMs: number): SpecSubject {
  const damaged: string[] = [];
  const info = once(() => message(DeviceInfo, raw.state, 'info', damaged));
  const labels = once(() => mergeLabels(info()?.labels ?? {}, decodeLabels(raw.labels, damaged)));
  return { id, ...decodeSpecParts(raw, info, nowMs, damaged), get labels() { return labels(); }, damaged };
}

/** As readSubject (scripts.ts) gives it. */
export function decodeChangeSubject(id: string, info: Buffer | null, model: Buffer | null, labels: RawHash): ChangeSubject {
  return decodeSpecSubject(id, { state: { ...(info ? { info } : {}), ...(model ? { model } : {}) }, desired: {}, pins: {}, learned: {}, labels }, 0);
}

/** As readFleetSubject (scripts.ts) gives it; null where it names no model that can be read. */
export function decodeFleetSubject(id: string, [model, reported, online, generation, hash]: readonly (Buffer | number | null)[]): FleetSubject | null {
  const decoded = Buffer.isBuffer(model) ? decodeOrNothing(models, model) : undefined;
  if (!decoded) return null;
  const [highest, desired] = [decodeCount(reported as Buffer | undefined), generation ? decodeCount(generation as Buffer) : 0n];
  const plain = highest === undefined || desired === undefined || highest > desired
    ? null : { generation: desired, hash: hash ? (hash as Buffer).toString('latin1') : '', online: online === 1 };
  return { id, model: decoded, plain };
}

function decodeSpecParts(raw: RawSubject, info: () => DeviceInfo | undefined, nowMs: number, damaged: string[]) {
  // The last model it had loaded is kept beside what it says of itself, so that it outlasts that it has none.
  const model = message(models, raw.state, 'model', damaged) ?? (info()?.model?.hash ? info()!.model : undefined);
  const desired = decodeDesired(raw.desired);
  if (desired.t === 'damaged') damaged.push('desired: no generation, or a hash that is not that of the spec');
  return {
    model, desired,
    reported: message(Reported, raw.state, 'reported', damaged),
    settledGeneration: decodeCount(raw.state['settledGeneration']) ?? 0n,
    pins: standingPins(decodePinSet(raw.pins, '', damaged), nowMs),
    marks: decodeMarks(raw.pins, damaged),
    learned: model ? message(Proposal, raw.learned, model.hash, damaged) : undefined,
  };
}

/** undefined where there is none; what cannot be decoded is named in `damaged`. */
function message<T>(type: { decode(bytes: Buffer): T }, hash: RawHash, field: string, damaged: string[]): T | undefined {
  const bytes = hash[field];
  if (!bytes) return undefined;
  try {
    return type.decode(bytes);
  } catch (error) {
    damaged.push(`${field}: ${reasonOf(error)}`);
    return undefined;
  }
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | null = null;
  return () => (made ??= { value: make() }).value;
}

/** As readProgress (scripts.ts) gives it. A report that cannot be decoded counts as none. */
export function decodeProgress([reported, settled, generation, hash, origin, holder]: readonly (Buffer | null | undefined)[]): DeviceProgress {
  const count = decodeCount(generation ?? undefined);
  return {
    online: Boolean(holder && holder.length > 0),
    reported: reported ? decodeOrNothing(Reported, reported) : undefined,
    settledGeneration: decodeCount(settled ?? undefined) ?? 0n,
    desired: count && hash ? { generation: count, hash: hash.toString('utf8'), origin: origin?.toString('utf8') ?? '' } : null,
  };
}

/** Field of the hash of what was learned. */
export function refusedField(modelHash: string): string { return `refused:${modelHash}`; }

export function decodeDesired(raw: RawHash): DesiredRecord {
  if (Object.keys(raw).length === 0) return { t: 'none' };
  const generation = decodeCount(raw['generation']);
  const { spec } = raw;
  // Bytes may be no DeviceSpec though their hash is right.
  const known = spec && specs.decode(spec);
  if (generation && spec && known?.decoded && known.hash === text(raw, 'hash')) {
    return { t: 'set', generation, spec, decoded: known.decoded, hash: known.hash, origin: text(raw, 'origin') };
  }
  return { t: 'damaged', generation: generation ?? 0n };
}

/** Pins whose hash field is `<field><suffix>`. */
export function decodePinSet(raw: RawHash, suffix: string, damaged: string[]): PinSet {
  const pins: Record<string, unknown> = {};
  for (const field of PIN_FIELDS) {
    const json = raw[`${field}${suffix}`];
    if (!json) continue;
    try {
      pins[field] = decodePin(field, json.toString('utf8'));
    } catch (error) {
      damaged.push(`pin ${field}${suffix}: ${reasonOf(error)}`);
    }
  }
  return pins as PinSet;
}

/** The generation a desired record has, 0 for none. */
export function generationOf(desired: DesiredRecord): bigint {
  return desired.t === 'none' ? 0n : desired.generation;
}

/**
 * Whether what a device says last is of exactly this spec. The generation alone does not tell: one that the registry has
 * lost may have been given anew. Agents of earlier releases name no hash.
 */
export function speaksOf(reported: Reported | undefined, generation: bigint, hash: string): reported is Reported {
  return reported?.generation === generation && (reported.hash.length === 0 || reported.hash.toString('hex') === hash);
}

/** hex */
export function specHash(spec: Buffer): string {
  return specs.decode(spec).hash;
}

function sha256Hex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** A count as decimal digits, below MAX_GENERATION; undefined for anything else. */
export function decodeCount(bytes: Buffer | undefined): bigint | undefined {
  if (!bytes || bytes.length === 0 || bytes.length > 16) return undefined;
  let count = 0;
  for (const digit of bytes) {
    if (digit < 0x30 || digit > 0x39) return undefined;
    count = 10 * count + digit - 0x30;
  }
  return count <= Number(MAX_GENERATION) ? BigInt(count) : undefined;
}

/** The highest generation that a device has told of; 0 for none. */
export function highestReported({ generation, appliedGeneration }: Pick<Reported, 'generation' | 'appliedGeneration'> = { generation: 0n, appliedGeneration: 0n }): bigint {
  return generation > appliedGeneration ? generation : appliedGeneration;
}

function decodeOrNothing<T>(type: { decode(bytes: Uint8Array): T }, bytes: Buffer): T | undefined {
  try {
    return type.decode(bytes);
  } catch {
    return undefined;
  }
}

function text(raw: RawHash, field: string): string {
  return raw[field]?.toString('utf8') ?? '';
}
