/**
 * Makes Redis clients that fail fast: a command is refused while the connection is down instead of waiting in a queue
 * without a bound, and one that gets no answer is given up. Reconnecting goes on for ever, in the background.
 */
import { Cluster, Redis, type RedisOptions } from 'ioredis';
import { backoffMs } from '@moefleet/runtime';

export type RedisClient = Redis | Cluster;

export interface RedisAddress {
  readonly url: string;
  /** the URL names one node of a Redis Cluster */
  readonly cluster: boolean;
}

/** Long enough for a busy Redis, short enough for an operator who waits. */
const COMMAND_TIMEOUT_MS = 2000;
const CONNECT_TIMEOUT_MS = 2000;
const RECONNECT = { baseMs: 50, maxMs: 2000, random: Math.random };

/** For a BullMQ worker, which waits for jobs in commands that block and has to outlast any outage. Connects by itself. */
export function createQueueClient(address: RedisAddress, name: string): RedisClient {
  return create(address, { connectionName: name, maxRetriesPerRequest: null, connectTimeout: CONNECT_TIMEOUT_MS }, true);
}

/** Does no I/O before `connect()`. The caller listens to 'error' and disconnects it. */
export function createRedisClient(address: RedisAddress, name: string): RedisClient {
  return create(address, {
    connectionName: name,
    lazyConnect: true,
    // A command that was on its way when the connection broke fails; whoever sent it reads the state and decides anew.
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    // Commands of one turn of the event loop leave in one write: a third of the processor time of a push to thousands.
    enableAutoPipelining: true,
    commandTimeout: COMMAND_TIMEOUT_MS,
    connectTimeout: CONNECT_TIMEOUT_MS,
    autoResubscribe: false,
  }, false);
}

/** `patient`: commands wait while the connection is down. */
function create(address: RedisAddress, options: RedisOptions, patient: boolean): RedisClient {
  const retryStrategy = (attempt: number): number => backoffMs(attempt, RECONNECT);
  const shared: RedisOptions = { ...options, enableOfflineQueue: patient };
  if (!address.cluster) return new Redis(address.url, { ...shared, retryStrategy });
  const url = new URL(address.url);
  return new Cluster([{ host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port || 6379) }], {
    lazyConnect: !patient,
    enableOfflineQueue: patient,
    clusterRetryStrategy: retryStrategy,
    redisOptions: {
      ...shared,
      ...(url.username ? { username: decodeURIComponent(url.username) } : {}),
      ...(url.password ? { password: decodeURIComponent(url.password) } : {}),
      ...(url.protocol === 'rediss:' ? { tls: {} } : {}),
    },
  });
}

/** The URL as it may be shown: without its password. */
export function shownUrl(url: string): string {
  const parsed = new URL(url);
  if (parsed.password) parsed.password = '***';
  return parsed.toString().replace(/\/$/, '');
}
