/** Apart from the rest: agents have no Redis. */
export { queuePrefix } from './queue-prefix';
export { createQueueClient, createRedisClient, parseRedisUrl, type RedisAddress, type RedisClient, shownUrl } from './redis-client';
export { readRedisAddress, readRedisPrefix, REDIS_SETTINGS } from './redis-settings';
