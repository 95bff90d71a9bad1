/** How a Redis is set up, as far as the registry depends on it. For whoever looks after it; nothing here changes anything. */
import { createRedisClient, type RedisAddress, type RedisClient, shownUrl } from '@moefleet/runtime/redis';

export interface RedisCheckup {
  /** without a password */
  url: string;
  /** null: it answers */
  error: string | null;
  version: string;
  /** of the node asked: master or slave */
  role: string;
  appendOnly: boolean;
  /** empty where it may not be asked */
  evictionPolicy: string;
  /** 0: no limit */
  maxMemoryBytes: number;
  usedMemoryBytes: number;
  /** the median of some pings */
  roundTripMs: number;
}

const PINGS = 9;

/** Never rejects; connects once and goes. */
export async function inspectRedis(address: RedisAddress): Promise<RedisCheckup> {
  const checkup: RedisCheckup = { url: shownUrl(address.url), error: null, version: '', role: '', appendOnly: false, evictionPolicy: '', maxMemoryBytes: 0, usedMemoryBytes: 0, roundTripMs: 0 };
  let client: RedisClient | null = null;
  let said = '';
  try {
    client = createRedisClient(address, 'moefleet-doctor');
    client.on('error', (error: Error) => { said ||= error.message; });
    await client.connect();
    const info = await client.info();
    const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1] ?? '';
    const times: number[] = [];
    for (let i = 0; i < PINGS; i += 1) {
      const began = performance.now();
      await client.ping();
      times.push(performance.now() - began);
    }
    return {
      ...checkup, version: field('redis_version'), role: field('role'), appendOnly: field('aof_enabled') === '1', evictionPolicy: field('maxmemory_policy'),
      maxMemoryBytes: Number(field('maxmemory')) || 0, usedMemoryBytes: Number(field('used_memory')) || 0, roundTripMs: times.sort((a, b) => a - b)[PINGS >> 1]!,
    };
  } catch (error) {
    return { ...checkup, error: said || (error as Error).message };
  } finally {
    client?.disconnect();
  }
}
