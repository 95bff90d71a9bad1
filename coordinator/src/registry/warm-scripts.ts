/** Scripts of warm lists: a report of a device counts once and not too often; profiles and models are bounded in number. */
import type { Script } from './scripts';

/**
 * Notes a device's report. Boots do not matter for how often: a device that claims a new one for every report gains nothing.
 * in:  KEYS record (hash); ARGV boot id, sequence, now (ms), least ms between two that count, ms that the record is kept
 * out: 0 it counts, 1 seen before, 2 too soon
 */
const admitUse: Script = {
  name: 'moefleetAdmitUse',
  keys: 1,
  lua: `
    local was = redis.call('HMGET', KEYS[1], 'boot', 'sequence', 'countedMs')
    if was[1] == ARGV[1] and tonumber(ARGV[2]) <= (tonumber(was[2]) or -1) then return 1 end
    local since = tonumber(ARGV[3]) - (tonumber(was[3]) or -1e15)
    if since >= 0 and since < tonumber(ARGV[4]) then return 2 end
    redis.call('HSET', KEYS[1], 'boot', ARGV[1], 'sequence', ARGV[2], 'countedMs', ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return 0`,
};

/**
 * Makes room for a model among those that lists are kept of: the one not written for longest goes, if that is long ago.
 * in:  KEYS models (sorted set by when last written); ARGV model, now (ms), most models, ms after which one may go
 * out: {1, model that has gone or ''}; {0}: no room
 */
const enterWarmModel: Script = {
  name: 'moefleetEnterWarmModel',
  keys: 1,
  lua: `
    local gone = ''
    if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
      local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
      if tonumber(ARGV[2]) - tonumber(oldest[2]) < tonumber(ARGV[4]) then return {0} end
      gone = oldest[1]
      redis.call('ZREM', KEYS[1], gone)
    end
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    return {1, gone}`,
};

/**
 * Writes a profile if nobody has since it was read.
 * in:  KEYS profiles of a model (hash); ARGV workload, revision read (0: none), bytes, most workloads, ms that all are kept
 * out: 1 written, 0 another revision is there, -1 no room for another workload
 */
const putWarmProfile: Script = {
  name: 'moefleetPutWarmProfile',
  keys: 1,
  lua: `
    local revision = tonumber(redis.call('HGET', KEYS[1], 'rev|' .. ARGV[1]) or '0') or 0
    if revision ~= tonumber(ARGV[2]) then return 0 end
    if revision == 0 and redis.call('HLEN', KEYS[1]) >= 2 * tonumber(ARGV[4]) then return -1 end
    redis.call('HSET', KEYS[1], 'rev|' .. ARGV[1], revision + 1, 'use|' .. ARGV[1], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return 1`,
};

export const WARM_LUA = { admitUse, enterWarmModel, putWarmProfile } as const;
