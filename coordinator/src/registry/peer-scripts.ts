/** Scripts of who holds a model: bounded in number, and a stream that is over takes nothing of the one after it. */
import type { Script } from './scripts';

/**
 * Enters or renews a holder, unless a newer stream of the device has.
 * in:  KEYS holders (hash); ARGV device id, JSON with its fence, most holders, ms that all are kept
 * out: 1 entered, 0 a newer one is there, -1 no room
 */
const putHolder: Script = {
  name: 'moefleetPutHolder',
  keys: 1,
  lua: `
    local was = redis.call('HGET', KEYS[1], ARGV[1])
    if was then
      local ok, one = pcall(cjson.decode, was)
      local mine = cjson.decode(ARGV[2])
      if ok and type(one) == 'table' and (tonumber(one.fence) or 0) > mine.fence then return 0 end
    elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
      return -1
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return 1`,
};

/**
 * Forgets a holder, unless a newer stream of the device has entered it.
 * in:  KEYS holders (hash); ARGV device id, fence
 * out: 1 forgotten, 0 a newer one is there, or none
 */
const removeHolder: Script = {
  name: 'moefleetRemoveHolder',
  keys: 1,
  lua: `
    local was = redis.call('HGET', KEYS[1], ARGV[1])
    if not was then return 0 end
    local ok, one = pcall(cjson.decode, was)
    if ok and type(one) == 'table' and (tonumber(one.fence) or 0) > tonumber(ARGV[2]) then return 0 end
    return redis.call('HDEL', KEYS[1], ARGV[1])`,
};

export const PEER_LUA = { putHolder, removeHolder } as const;
