/**
 * Which nodes a Redis Cluster has, as a client knows it. The connection to the cluster as a whole stands while one of its
 * masters dies, so nothing else tells that a replica has become master; and what the old master had not passed on yet
 * is lost with it.
 */
import type { Cluster } from 'ioredis';

/**
 * A client that only listens asks for the nodes once and no more: when the one it listens to has died it may try dead ones
 * for ever, several hundred times a second. (ioredis can ask by itself, but goes on when it has been disconnected meanwhile.)
 */
const EVERY_MS = 2000;

/** Until the answer is called. */
export function keepNodesCurrent(client: Cluster): () => void {
  const timer = setInterval(() => {
    if (client.status === 'ready') client.refreshSlotsCache();
  }, EVERY_MS);
  return () => clearInterval(timer);
}

/** By the cluster's own map of its slots, which names a master that has died until another has its slots. */
export function onNewMaster(client: Cluster, listener: () => void): void {
  let known: ReadonlySet<string> = new Set();
  client.on('refresh', () => {
    const masters = new Set(client.slots.map((nodes) => nodes[0]!));
    const isNew = known.size > 0 && [...masters].some((master) => !known.has(master));
    known = masters;
    if (isNew) listener();
  });
}
