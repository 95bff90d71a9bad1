/**
 * Makes Redis clients that fail fast: a command is refused while the connection is down instead of waiting in a queue
 * without a bound, and one that gets no answer is given up. Reconnecting goes on for ever, in the background.
 */
import { Cluster, Redis, type RedisOptions } from 'ioredis';
import { backoffMs } from '../backoff';

export type RedisClient = Redis | Cluster;

export interface RedisAddress {
  readonly url: string;
  /** the URL names nodes of a Redis Cluster */
  readonly cluster: boolean;
  /** the URL names Sentinels, and this the master they watch; '': none */
  readonly sentinel?: string;
}

/** Long enough for a busy Redis, short enough for an operator who waits. */
const COMMAND_TIMEOUT_MS = 2000;
const CONNECT_TIMEOUT_MS = 2000;
const RECONNECT = { baseMs: 50, maxMs: 2000, random: Math.random };

/**
 * A client, and clients made from it, whose `disconnect` also answers what waits between two attempts to connect. ioredis leaves that without an
 * answer, and a BullMQ worker that was closed while Redis was away kept its process for another six seconds.
 */
class QueueClient extends Redis {
  override disconnect(reconnect = false): void {
    const between = !reconnect && this.status === 'reconnecting';
    super.disconnect(reconnect);
    if (between) (this as unknown as { flushQueue(error: Error): void }).flushQueue(new Error('Connection is closed.'));
  }

  override duplicate(override: Partial<RedisOptions> = {}): Redis {
    return new QueueClient({ ...this.options, ...override });
  }
}

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
    // A master that has become a replica: connect again, to whoever is master now.
    reconnectOnError: (error) => error.message.startsWith('READONLY'),
  }, false);
}

/** `patient`: commands wait while the connection is down. */
function create(address: RedisAddress, options: RedisOptions, patient: boolean): RedisClient {
  const retryStrategy = (attempt: number): number => backoffMs(attempt, RECONNECT);
  const Client = patient ? QueueClient : Redis;
  const shared: RedisOptions = { ...options, enableOfflineQueue: patient };
  const parsed = parseRedisUrl(address.url);
  if (!parsed) throw new Error(`${shownUrl(address.url)} is no address of Redis`);
  const { nodes, tls, username, password, db } = parsed;
  const login = { ...(username ? { username } : {}), ...(password ? { password } : {}), ...(tls ? { tls: {} } : {}) };
  if (address.sentinel) {
    return new Client({
      ...shared, ...login, retryStrategy, db,
      sentinels: nodes.map(({ host, port }) => ({ host, port: port ?? 26_379 })), name: address.sentinel, sentinelRetryStrategy: retryStrategy,
      ...(tls ? { enableTLSForSentinelMode: true, sentinelTLS: {} } : {}), ...(password ? { sentinelPassword: password } : {}), ...(username ? { sentinelUsername: username } : {}),
    });
  }
  if (!address.cluster) return new Client(address.url, { ...shared, retryStrategy });
  return new Cluster(nodes.map(({ host, port }) => ({ host, port: port ?? 6379 })), {
    lazyConnect: !patient,
    enableOfflineQueue: patient,
    clusterRetryStrategy: retryStrategy,
    redisOptions: {
      ...shared,
      ...login,
    },
  });
}

/** The URL as it may be shown: without its password. */
export function shownUrl(url: string): string {
  return url.replace(/^(rediss?:\/\/[^:@/]*):[^@/]*@/, '$1:***@').replace(/\/$/, '');
}

export interface ParsedRedisUrl {
  tls: boolean;
  username: string;
  password: string;
  nodes: { host: string; port: number | undefined }[];
  db: number;
}

/** `redis://user:password@host:port,host:port/db`; null for anything else. */
export function parseRedisUrl(text: string): ParsedRedisUrl | null {
  const match = /^(rediss?):\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^@/]+)(?:\/(\d{0,3}))?$/.exec(text);
  if (!match) return null;
  const [, scheme, username = '', password = '', hosts, db] = match;
  const nodes = hosts!.split(',').map((node) => /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(node));
  if (nodes.some((node) => !node || Number(node[3] ?? 0) > 65_535)) return null;
  return {
    tls: scheme === 'rediss', username: decoded(username), password: decoded(password), db: Number(db || 0),
    nodes: nodes.map((node) => ({ host: node![1] ?? node![2]!, port: node![3] === undefined ? undefined : Number(node![3]) })),
  };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
