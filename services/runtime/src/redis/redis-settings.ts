/** Where Redis is, as every program that uses it is told: the same flags and the same environment. */
import { ConfigError, type Env, readBoolean } from '../config-value';
import type { Setting } from '../setting';
import { parseRedisUrl, type RedisAddress, shownUrl } from './redis-client';

export const REDIS_SETTINGS: readonly Setting[] = [
  { flags: '--redis-url <url>', env: 'MOEFLEET_REDIS_URL', description: 'Redis that holds the registry and the job queue', fallback: 'redis://127.0.0.1:6379' },
  { flags: '--redis-cluster', env: 'MOEFLEET_REDIS_CLUSTER', description: 'the Redis at --redis-url is a node of a Redis Cluster', fallback: 'false' },
  { flags: '--redis-sentinel <name>', env: 'MOEFLEET_REDIS_SENTINEL', description: 'the addresses in --redis-url (redis://a:26379,b:26379) are Sentinels, which know the master by this name' },
  { flags: '--redis-prefix <prefix>', env: 'MOEFLEET_REDIS_PREFIX', description: 'first part of every key, so that several fleets can share a Redis', fallback: 'moefleet' },
];

/** Throws ConfigError. */
export function readRedisAddress(values: Env): Required<RedisAddress> {
  const url = values['MOEFLEET_REDIS_URL'] || 'redis://127.0.0.1:6379';
  const sentinel = values['MOEFLEET_REDIS_SENTINEL'] ?? '';
  const cluster = readBoolean('MOEFLEET_REDIS_CLUSTER', values['MOEFLEET_REDIS_CLUSTER'], false);
  const parsed = parseRedisUrl(url);
  if (!parsed) throw new ConfigError('MOEFLEET_REDIS_URL', shownUrl(url), 'an address that begins with redis:// or rediss://, such as redis://127.0.0.1:6379');
  if (parsed.nodes.length > 1 && !cluster && sentinel === '') throw new ConfigError('MOEFLEET_REDIS_URL', shownUrl(url), 'one address; several need --redis-cluster or --redis-sentinel');
  if (cluster && sentinel !== '') throw new ConfigError('MOEFLEET_REDIS_SENTINEL', sentinel, 'possible together with --redis-cluster; leave one of them out');
  return { url, cluster, sentinel };
}

/** Throws ConfigError. */
export function readRedisPrefix(values: Env): string {
  const prefix = values['MOEFLEET_REDIS_PREFIX'] || 'moefleet';
  if (!/^[A-Za-z0-9._:-]{1,64}$/.test(prefix)) throw new ConfigError('MOEFLEET_REDIS_PREFIX', prefix, 'a key prefix of letters, digits, ".", "_", ":" and "-"');
  return prefix;
}
