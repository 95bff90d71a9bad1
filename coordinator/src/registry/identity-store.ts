/**
 * Who belongs to the fleet: enrolment tokens, and the identity of each device. Secrets are kept as their SHA-256 only.
 * Times are the caller's, so that tests can choose them; Redis forgets a token by its own clock, a week after its end.
 */
import { RegistryDataError } from '../errors';
import { inChunks } from './chunks';
import { decodeIdentity, decodeLabelText, decodeToken, type IdentityRecord, type TokenRecord } from './identity-record';
import { IDENTITY_LUA } from './identity-scripts';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

const KEPT_AFTER_END_MS = 7 * 24 * 3_600_000;
/** The list forgets the oldest beyond it. */
const MOST_TOKENS = 10_000;

export interface NewToken { id: string; secretHash: string; labels: Readonly<Record<string, string>>; uses: number; nowMs: number; ttlMs: number; why: string }

export type TokenUse = { t: 'taken'; labels: Record<string, string> } | { t: 'refused'; because: string; detail: string };

export interface Claim { deviceId: string; installId: string; keyHash: string; tokenId: string; hostname: string; labels: Readonly<Record<string, string>>; nowMs: number }

export type ClaimAnswer = { t: 'claimed' } | { t: 'taken'; hostname: string } | { t: 'revoked'; why: string };

export class IdentityStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  async putToken({ id, secretHash, labels, uses, nowMs, ttlMs, why }: NewToken): Promise<TokenRecord> {
    const [key, list] = [this.keys.enrolmentToken(id), this.keys.enrolmentTokens];
    await this.link.run(key, async (client) => {
      await client.hset(key, { secretHash, labels: JSON.stringify(labels), uses, used: 0, createdMs: nowMs, expiresMs: nowMs + ttlMs, why });
      await client.pexpire(key, ttlMs + KEPT_AFTER_END_MS);
      await client.zadd(list, nowMs, id);
      await client.zremrangebyrank(list, 0, -MOST_TOKENS - 1);
    });
    return { id, labels: { ...labels }, uses, used: 0, createdMs: nowMs, expiresMs: nowMs + ttlMs, revokedMs: 0, why };
  }

  /** Newest first. */
  async tokens(): Promise<TokenRecord[]> {
    const ids = await this.link.run(this.keys.enrolmentTokens, (client) => client.zrevrange(this.keys.enrolmentTokens, 0, -1));
    const found = await inChunks(ids, (id) => this.token(id));
    return found.filter((token) => token !== null);
  }

  async token(id: string): Promise<TokenRecord | null> {
    const key = this.keys.enrolmentToken(id);
    return decodeToken(id, await this.link.run(key, (client) => client.hgetallBuffer(key)));
  }

  async revokeToken(id: string, nowMs: number, why: string): Promise<void> {
    const key = this.keys.enrolmentToken(id);
    await this.link.run(key, (client) => client.hset(key, { revokedMs: nowMs, ...(why ? { why } : {}) }));
  }

  async useToken(id: string, secretHash: string, device: string, nowMs: number): Promise<TokenUse> {
    const [taken, text, detail] = await this.link.script(IDENTITY_LUA.useToken, this.tokenKeys(id), [secretHash, device, nowMs]) as [number, Buffer, Buffer?];
    if (Number(taken) === 1) return { t: 'taken', labels: decodeLabelText(String(text)) };
    return { t: 'refused', because: String(text), detail: String(detail ?? '') };
  }

  async useTokenAgain(id: string, device: string): Promise<void> {
    await this.link.script(IDENTITY_LUA.useTokenAgain, this.tokenKeys(id), [device]);
  }

  async returnToken(id: string, device: string): Promise<void> {
    await this.link.script(IDENTITY_LUA.returnToken, this.tokenKeys(id), [device]);
  }

  async claim({ deviceId, installId, keyHash, tokenId, hostname, labels, nowMs }: Claim): Promise<ClaimAnswer> {
    const [answer, detail] = await this.link.script(IDENTITY_LUA.claimIdentity, [this.keys.identity(deviceId), this.keys.labels(deviceId)],
      [installId, keyHash, tokenId, nowMs, hostname, ...Object.entries(labels).flat()]) as [number, Buffer?];
    if (Number(answer) === 1) return { t: 'claimed' };
    return Number(answer) === 2 ? { t: 'revoked', why: String(detail ?? '') } : { t: 'taken', hostname: String(detail ?? '') };
  }

  async noteCertificate(deviceId: string, notAfterMs: number): Promise<void> {
    await this.set(deviceId, { notAfterMs });
  }

  async revoke(deviceId: string, nowMs: number, why: string): Promise<void> {
    await this.set(deviceId, { revokedMs: nowMs, revokedWhy: why });
  }

  async unrevoke(deviceId: string, nowMs: number): Promise<void> {
    await this.set(deviceId, { unrevokedMs: nowMs });
    await this.clear(deviceId, 'revokedMs', 'revokedWhy');
  }

  async release(deviceId: string, nowMs: number): Promise<void> {
    await this.set(deviceId, { releasedMs: nowMs });
  }

  async clearClone(deviceId: string): Promise<void> {
    await this.clear(deviceId, 'clonedMs', 'clones');
    const key = this.keys.boots(deviceId);
    await this.link.run(key, (client) => client.del(key));
  }

  /** null for a device of which nothing is known. */
  async read(deviceId: string): Promise<IdentityRecord | null> {
    const key = this.keys.identity(deviceId);
    return decodeIdentity(deviceId, await this.link.run(key, (client) => client.hgetallBuffer(key)));
  }

  /** One that cannot be read is left out. */
  async readAll(deviceIds: readonly string[]): Promise<IdentityRecord[]> {
    const found = await inChunks([...deviceIds], async (id) => {
      try {
        return await this.read(id);
      } catch (error) {
        if (error instanceof RegistryDataError) return null;
        throw error;
      }
    });
    return found.filter((identity) => identity !== null);
  }

  private tokenKeys(id: string): string[] {
    return [this.keys.enrolmentToken(id), this.keys.enrolmentTokenUsers(id)];
  }

  private async set(deviceId: string, fields: Record<string, string | number>): Promise<void> {
    const key = this.keys.identity(deviceId);
    await this.link.run(key, (client) => client.hset(key, fields));
  }

  private async clear(deviceId: string, ...fields: string[]): Promise<void> {
    const key = this.keys.identity(deviceId);
    await this.link.run(key, (client) => client.hdel(key, ...fields));
  }
}
