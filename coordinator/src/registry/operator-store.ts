/**
 * Operators and their tokens. A token is `mfo_` and 256 random bits; Redis holds its SHA-256 alone, which for a secret
 * of that size needs no salt and no slow hash. A token is looked up by that hash, so what can be timed is the look-up
 * of a hash, of no use to who does not have the secret; the record found is compared in constant time all the same.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { reasonOf, RegistryDataError } from '../errors';
import { isSha256 } from '../names';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export type OperatorRole = 'viewer' | 'operator' | 'admin' | 'learner';
export const OPERATOR_ROLES: readonly OperatorRole[] = ['viewer', 'operator', 'admin', 'learner'];

export interface OperatorRecord {
  readonly name: string;
  readonly role: OperatorRole;
  /** hex SHA-256 of the token */
  readonly hash: string;
  readonly createdMs: number;
  /** 0: never */
  readonly expiresMs: number;
  /** 0: not revoked */
  readonly revokedMs: number;
  readonly createdBy: string;
}

export type TokenVerdict = { t: 'valid'; operator: OperatorRecord } | { t: 'unknown' } | { t: 'expired'; operator: OperatorRecord };

const TOKEN = /^mfo_[A-Za-z0-9_-]{43}$/;

export function newToken(): string {
  return `mfo_${randomBytes(32).toString('base64url')}`;
}

export function isToken(text: string): boolean {
  return TOKEN.test(text);
}

export class OperatorStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  /** null where the name has a token in force. */
  async create(name: string, role: OperatorRole, token: string, ttlMs: number, createdBy: string): Promise<OperatorRecord | null> {
    const nowMs = Date.now();
    const record: OperatorRecord = { name, role, hash: hashOf(token), createdMs: nowMs, expiresMs: ttlMs > 0 ? nowMs + ttlMs : 0, revokedMs: 0, createdBy };
    const known = await this.get(name);
    if (known && inForce(known, nowMs)) return null;
    const raw = known ? await this.raw(name) : '';
    const written = await this.link.script(LUA.putOperator, [this.keys.operators, this.keys.operatorTokens], [name, raw ?? '', JSON.stringify(record), record.hash, known?.hash ?? '']);
    return Number(written) === 1 ? record : null;
  }

  /** null for a name nobody has or whose token is revoked already. */
  async revoke(name: string): Promise<OperatorRecord | null> {
    const [known, raw] = [await this.get(name), await this.raw(name)];
    if (!known || known.revokedMs > 0) return null;
    const revoked = { ...known, revokedMs: Date.now() };
    const written = await this.link.script(LUA.putOperator, [this.keys.operators, this.keys.operatorTokens], [name, raw ?? '', JSON.stringify(revoked), '', known.hash]);
    return Number(written) === 1 ? revoked : this.revoke(name);
  }

  async verify(token: string): Promise<TokenVerdict> {
    if (!isToken(token)) return { t: 'unknown' };
    const hash = hashOf(token);
    const name = await this.link.run(this.keys.operatorTokens, (client) => client.hget(this.keys.operatorTokens, hash));
    const operator = name === null ? null : await this.get(name);
    if (!operator || operator.revokedMs > 0 || !sameHash(operator.hash, hash)) return { t: 'unknown' };
    return inForce(operator, Date.now()) ? { t: 'valid', operator } : { t: 'expired', operator };
  }

  async get(name: string): Promise<OperatorRecord | null> {
    const json = await this.raw(name);
    return json === null ? null : this.decode(name, json);
  }

  /** Sorted by name. */
  async list(): Promise<OperatorRecord[]> {
    const all = await this.link.run(this.keys.operators, (client) => client.hgetall(this.keys.operators));
    return Object.entries(all).map(([name, json]) => this.decode(name, json)).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  private raw(name: string): Promise<string | null> {
    return this.link.run(this.keys.operators, (client) => client.hget(this.keys.operators, name));
  }

  private decode(name: string, json: string): OperatorRecord {
    try {
      const value = JSON.parse(json) as Partial<OperatorRecord> | null;
      const { role, hash, createdMs, expiresMs, revokedMs, createdBy } = value ?? {};
      const times = [createdMs, expiresMs, revokedMs];
      if (value?.name !== name || !OPERATOR_ROLES.includes(role!)) throw new TypeError('name or role is none');
      if (!isSha256(hash) || typeof createdBy !== 'string') throw new TypeError('hash is none');
      if (!times.every((time) => typeof time === 'number' && Number.isSafeInteger(time) && time >= 0)) throw new TypeError('a time is none');
      return value as OperatorRecord;
    } catch (error) {
      throw new RegistryDataError(this.keys.operators, `operator ${JSON.stringify(name).slice(0, 100)}: ${reasonOf(error)}`, error);
    }
  }
}

function inForce(operator: OperatorRecord, nowMs: number): boolean {
  return operator.revokedMs === 0 && (operator.expiresMs === 0 || nowMs < operator.expiresMs);
}

function hashOf(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}

function sameHash(a: string, b: string): boolean {
  return timingSafeEqual(Buffer.from(a, 'hex'), Buffer.from(b, 'hex'));
}
