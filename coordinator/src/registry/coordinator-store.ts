/** Which coordinators are alive: each renews a record that runs out by itself. */
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

export interface CoordinatorRecord {
  id: string;
  version: string;
  gatewayAddress: string;
  operatorAddress: string;
  sinceMs: number;
  streams: number;
  framesShed: number;
  stopping: boolean;
}

/** Outlives two renewals that were lost. */
export const COORDINATOR_TTL_MS = 15_000;
/** Ids whose record is gone are forgotten at the next look. */
const MOST_COORDINATORS = 1000;

export class CoordinatorStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  async put(record: CoordinatorRecord): Promise<void> {
    const key = this.keys.coordinator(record.id);
    await this.link.run(key, async (client) => {
      await client.set(key, JSON.stringify(record), 'PX', COORDINATOR_TTL_MS);
      await client.sadd(this.keys.coordinators, record.id);
    });
  }

  async remove(id: string): Promise<void> {
    const key = this.keys.coordinator(id);
    await this.link.run(key, async (client) => {
      await client.del(key);
      await client.srem(this.keys.coordinators, id);
    });
  }

  /** Those alive, by id. */
  async all(): Promise<CoordinatorRecord[]> {
    const ids = (await this.link.run(this.keys.coordinators, (client) => client.smembers(this.keys.coordinators))).sort().slice(0, MOST_COORDINATORS);
    const found = await Promise.all(ids.map(async (id) => {
      const key = this.keys.coordinator(id);
      const record = decodeCoordinator(id, await this.link.run(key, (client) => client.get(key)));
      if (!record) await this.link.run(key, (client) => client.srem(this.keys.coordinators, id));
      return record;
    }));
    return found.filter((record) => record !== null);
  }
}

/** null for what is gone or no record. */
function decodeCoordinator(id: string, json: string | null): CoordinatorRecord | null {
  if (json === null) return null;
  try {
    const { version, gatewayAddress, operatorAddress, sinceMs, streams, framesShed, stopping } = JSON.parse(json) as Record<string, unknown>;
    const text = (value: unknown) => (typeof value === 'string' ? value.slice(0, 256) : '');
    const count = (value: unknown) => (Number.isSafeInteger(value) && (value as number) >= 0 ? value as number : 0);
    return {
      id, version: text(version), gatewayAddress: text(gatewayAddress), operatorAddress: text(operatorAddress), sinceMs: count(sinceMs),
      streams: count(streams), framesShed: count(framesShed), stopping: stopping === true,
    };
  } catch {
    return null;
  }
}
