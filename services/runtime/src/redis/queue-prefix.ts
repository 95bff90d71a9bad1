/** First part of the keys of all BullMQ queues; workers need the same. The hash tag keeps a queue in one slot of a Redis Cluster. */
export function queuePrefix(redisPrefix: string): string {
  return `{${redisPrefix}:bull}`;
}
