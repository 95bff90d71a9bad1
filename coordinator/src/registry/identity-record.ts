/** What the registry knows about who a device is, and how it is read. Nothing found in Redis is trusted. */
import { isLabelKey, isLabelValue } from '@moefleet/runtime';
import { decodeCount, type RawHash } from './device-record';

export interface CloneSighting { bootId: string; hostname: string; peer: string }

export interface IdentityRecord {
  deviceId: string;
  installId: string;
  /** hex SHA-256 of the public key in SPKI; '' for a device that has not enrolled */
  keyHash: string;
  enrolledMs: number;
  /** of the latest certificate */
  notAfterMs: number;
  tokenId: string;
  /** 0: not */
  revokedMs: number;
  revokedWhy: string;
  /** when a revocation was last taken back; 0: never */
  unrevokedMs: number;
  releasedMs: number;
  clonedMs: number;
  clones: CloneSighting[];
}

/** As whom a device takes a use of an enrolment token: with another key it takes another. */
export function tokenUser({ deviceId, installId, keyHash }: Pick<IdentityRecord, 'deviceId' | 'installId' | 'keyHash'>): string {
  return `${deviceId} ${installId} ${keyHash}`;
}

/** null where nothing is known. */
export function decodeIdentity(deviceId: string, raw: RawHash): IdentityRecord | null {
  if (Object.keys(raw).length === 0) return null;
  const text = (field: string) => raw[field]?.toString('utf8') ?? '';
  const time = (field: string) => Number(decodeCount(raw[field]) ?? 0n);
  return {
    deviceId, installId: text('installId'), keyHash: text('keyHash'), enrolledMs: time('enrolledMs'), notAfterMs: time('notAfterMs'), tokenId: text('tokenId'),
    // A mark whose time is damaged is a mark all the same.
    revokedMs: raw['revokedMs'] ? time('revokedMs') || 1 : 0, revokedWhy: text('revokedWhy'), unrevokedMs: time('unrevokedMs'), releasedMs: raw['releasedMs'] ? time('releasedMs') || 1 : 0,
    clonedMs: raw['clonedMs'] ? time('clonedMs') || 1 : 0, clones: decodeClones(text('clones')),
  };
}

export interface TokenRecord {
  id: string;
  labels: Record<string, string>;
  uses: number;
  used: number;
  createdMs: number;
  expiresMs: number;
  revokedMs: number;
  why: string;
}

/** null for what is no token. */
export function decodeToken(id: string, raw: RawHash): TokenRecord | null {
  if (!raw['secretHash']) return null;
  const count = (field: string) => Number(decodeCount(raw[field]) ?? 0n);
  return {
    id, labels: decodeLabelText(raw['labels']?.toString('utf8') ?? ''), uses: count('uses'), used: count('used'), createdMs: count('createdMs'),
    expiresMs: count('expiresMs'), revokedMs: raw['revokedMs'] ? count('revokedMs') || 1 : 0, why: raw['why']?.toString('utf8') ?? '',
  };
}

/** Labels as JSON; what is no label is left out. */
export function decodeLabelText(json: string): Record<string, string> {
  const value = parsed(json);
  if (typeof value !== 'object' || value === null) return {};
  return Object.fromEntries(Object.entries(value).filter(([key, label]) => isLabelKey(key) && typeof label === 'string' && isLabelValue(label))) as Record<string, string>;
}

function decodeClones(json: string): CloneSighting[] {
  if (json === '') return [];
  const value = parsed(json);
  if (!Array.isArray(value)) return [];
  return value.map((one: Record<string, unknown> | null) => ({ bootId: String(one?.['b'] ?? ''), hostname: String(one?.['h'] ?? ''), peer: String(one?.['p'] ?? '') }));
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}
