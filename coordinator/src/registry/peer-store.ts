/**
 * Who holds or fetches a model at a place, so that devices beside each other can share it. A holder is forgotten when its
 * device leaves, or when nobody has renewed it for a while; of one that came back through another stream, the older stream
 * takes nothing away. A place has a bound: whoever comes after that learns of the others, and they not of it.
 */
import { createHash } from 'node:crypto';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export interface HolderRecord {
  readonly deviceId: string;
  readonly port: number;
  /** as told: address/prefix */
  readonly networks: readonly string[];
  readonly whole: boolean;
}

const MOST_HOLDERS = 1024;
export const HOLDER_TTL_MS = 90_000;

export class PeerStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  async put(group: string, { deviceId, port, networks, whole }: HolderRecord, fence: bigint, nowMs: number): Promise<void> {
    const record = JSON.stringify({ port, networks, whole, fence: Number(fence), until: nowMs + HOLDER_TTL_MS });
    await this.link.script(LUA.putHolder, [this.keys.peers(group)], [deviceId, record, MOST_HOLDERS, HOLDER_TTL_MS]);
  }

  async remove(group: string, deviceId: string, fence: bigint): Promise<void> {
    await this.link.script(LUA.removeHolder, [this.keys.peers(group)], [deviceId, fence]);
  }

  /** Those that have not run out. */
  async read(group: string, nowMs: number): Promise<HolderRecord[]> {
    const key = this.keys.peers(group);
    const found = await this.link.run(key, (client) => client.hgetall(key));
    const gone: string[] = [];
    const holders = Object.entries(found).flatMap(([deviceId, json]) => {
      const holder = decodeHolder(deviceId, json, nowMs);
      if (!holder) gone.push(deviceId);
      return holder ?? [];
    });
    if (gone.length > 0) await this.link.run(key, (client) => client.hdel(key, ...gone));
    return holders;
  }
}

/** Name of what is shared by devices of one place for one model; fit for a key. */
export function peerGroup(manifestSha256: string, place: string): string {
  return `${manifestSha256}:${createHash('sha256').update(place).digest('hex').slice(0, 16)}`;
}

/** null for what has run out or is none. */
function decodeHolder(deviceId: string, json: string, nowMs: number): HolderRecord | null {
  try {
    const { port, networks, whole, until } = JSON.parse(json) as Record<string, unknown>;
    const known = Number.isSafeInteger(port) && Array.isArray(networks) && networks.every((network) => typeof network === 'string') && Number(until) > nowMs;
    return known ? { deviceId, port: port as number, networks: networks as string[], whole: whole === true } : null;
  } catch {
    return null;
  }
}
