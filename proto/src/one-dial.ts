/**
 * Channel options of a client that dials once and is then closed, because its owner has a backoff of its own. Shared with
 * others a subchannel would answer from its own backoff; and grpc-js dials once more after the client was closed, when its
 * backoff ends, unless the pool has let the subchannel go before, which it does within ten seconds.
 */
const NOT_AGAIN_MS = 60_000;

export const ONE_DIAL = {
  'grpc.use_local_subchannel_pool': 1,
  'grpc.enable_retries': 0,
  'grpc.initial_reconnect_backoff_ms': NOT_AGAIN_MS,
  'grpc.max_reconnect_backoff_ms': NOT_AGAIN_MS,
} as const;
