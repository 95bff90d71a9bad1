/**
 * What the registry holds about a device, and how it is read from Redis. Nothing found there is trusted: a part that
 * cannot be decoded is left out and told through `damaged`, so that one broken value neither hides the device nor
 * stops the coordinator.
 */
import { createHash } from 'node:crypto';
import { DeviceInfo, DeviceSpec, ModelState, Proposal, Reported, TelemetryFrame } from '@moefleet/proto';
import type { Labels } from '@moefleet/runtime';
import { reasonOf } from '../errors';
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

/** What tells how far a device has come with a spec. */
export interface DeviceProgress {
  online: boolean;
  reported: Reported | undefined;
  settledGeneration: bigint;
  /** null where there is none, or it is damaged */
  desired: { generation: bigint; hash: string; origin: string } | null;
}

export type RawHash = Record<string, Buffer>;

export interface RawDevice {
  /** bytes of the latest telemetry frame; coordinators of earlier releases keep it in `state` */
  frame: Buffer | null;
  state: RawHash; desired: RawHash; lease: RawHash; pins: RawHash; learned: RawHash; labels: RawHash; identity: RawHash;
}

/** Without pins that have ended by `nowMs`. */
export function decodeDevice(id: string, raw: RawDevice, nowMs: number): DeviceRecord {
  const damaged: string[] = [];
  const message = <T>(hash: RawHash, field: string, type: { decode(bytes: Uint8Array): T }): T | undefined => {
    const bytes = hash[field];
    if (!bytes) return undefined;
    try {
      return type.decode(bytes);
    } catch (error) {
      damaged.push(`${field}: ${reasonOf(error)}`);
      return undefined;
    }
  };
  const info = message(raw.state, 'info', DeviceInfo);
  const model = info?.model?.hash ? info.model : message(raw.state, 'model', ModelState);
  const operatorLabels = decodeLabels(raw.labels, damaged);
  const desired = decodeDesired(raw.desired);
  if (desired.t === 'damaged') damaged.push('desired: no generation, or a hash that is not that of the spec');
  return {
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
    model,
    reported: message(raw.state, 'reported', Reported),
    telemetry: message(raw.frame ? { telemetry: raw.frame } : raw.state, 'telemetry', TelemetryFrame),
    desired,
    settledGeneration: decodeCount(raw.state['settledGeneration']) ?? 0n,
    identity: decodeIdentity(id, raw.identity),
    pins: standingPins(decodePinSet(raw.pins, '', damaged), nowMs),
    marks: decodeMarks(raw.pins, damaged),
    learned: model ? message(raw.learned, model.hash, Proposal) : undefined,
    refused: model ? message(raw.learned, refusedField(model.hash), Proposal) : undefined,
    lastProposal: message(raw.learned, 'last', Proposal),
    damaged,
  };
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
  const spec = raw['spec'];
  const hash = text(raw, 'hash');
  try {
    if (generation && spec && specHash(spec) === hash) {
      return { t: 'set', generation, spec, decoded: DeviceSpec.decode(spec), hash, origin: text(raw, 'origin') };
    }
  } catch {
    // bytes that are no DeviceSpec, though their hash is right
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

/** hex */
/**
 * Whether what a device says last is of exactly this spec. The generation alone does not tell: one that the registry has
 * lost may have been given anew. Agents of earlier releases name no hash.
 */
export function speaksOf(reported: Reported | undefined, generation: bigint, hash: string): reported is Reported {
  return reported?.generation === generation && (reported.hash.length === 0 || reported.hash.toString('hex') === hash);
}

export function specHash(spec: Uint8Array): string {
  return createHash('sha256').update(spec).digest('hex');
}

/** A count as decimal digits, below MAX_GENERATION; undefined for anything else. */
export function decodeCount(bytes: Buffer | undefined): bigint | undefined {
  const digits = bytes?.toString('latin1');
  if (!digits || !/^\d{1,16}$/.test(digits)) return undefined;
  const count = BigInt(digits);
  return count <= MAX_GENERATION ? count : undefined;
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
