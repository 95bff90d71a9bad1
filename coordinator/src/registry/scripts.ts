/**
 * The registry's Lua scripts: what has to happen as one step. All keys of one call share a hash tag. Numbers stay
 * below 2^53, where Lua's are exact; callers check that before.
 */
import { countFrames } from './count-script';
import { IDENTITY_LUA } from './identity-scripts';
import { PEER_LUA } from './peer-scripts';
import { WARM_LUA } from './warm-scripts';

export interface Script {
  readonly name: string;
  /** any: as many as the call gives */
  readonly keys: number | 'any';
  /** what of a device its keys are, in order (keys.ts): then a call names what they begin with */
  readonly device?: readonly string[];
  /** calls of one turn of the event loop travel as one (script-batch.ts) */
  readonly batched?: true;
  readonly lua: string;
}

/**
 * Gives a device's stream its lease, if the device may be here: it is not revoked, its key (where the stream has one)
 * is the one that enrolled, and it does not run twice. Two boots of one installation that come in turns are two
 * machines: a boot that has been replaced and comes back counts, a mere restart never does. With enough returns
 * within the window the device is marked, and from then on whoever holds the lease keeps it.
 * in:  KEYS lease, fence, state, identity, boots;
 *      ARGV installId, bootId, coordinatorId, hostname, ttlMs, nowMs, keyHash or '', peer, windowMs, returns that mark
 * out: {1, fence, coordinatorId of the lease it replaces or '', 1 if it has just been marked}
 *      {0, installId, coordinatorId, hostname of the holder}: another installation has a live stream
 *      {2, why}: revoked; {3}: another key has the device id, or it was released
 *      {4, hostname of the holder, 1 if it has just been marked}: another boot of a device that runs twice is here
 */
const acquireLease: Script = {
  name: 'moefleetAcquireLease',
  keys: 5,
  device: ['lease', 'fence', 'state', 'identity', 'boots'],
  batched: true,
  lua: `
    local who = redis.call('HMGET', KEYS[4], 'revokedMs', 'revokedWhy', 'keyHash', 'installId', 'releasedMs', 'clonedMs')
    if who[1] then return {2, who[2] or ''} end
    if ARGV[7] ~= '' then
      if who[5] or (who[3] and (who[3] ~= ARGV[7] or who[4] ~= ARGV[1])) then return {3} end
      if not who[3] then redis.call('HSET', KEYS[4], 'installId', ARGV[1], 'keyHash', ARGV[7], 'hostname', ARGV[4]) end
    end
    local held = redis.call('HMGET', KEYS[1], 'installId', 'coordinatorId', 'hostname', 'bootId')
    if held[1] and held[1] ~= ARGV[1] then
      return {0, held[1], held[2] or '', held[3] or ''}
    end
    local function boot(json)
      local ok, one = pcall(cjson.decode, json)
      local good = ok and type(one) == 'table' and type(one.b) == 'string' and type(one.t) == 'number'
      if good and tonumber(ARGV[6]) - one.t <= tonumber(ARGV[9]) then return one end
    end
    local marked = 0
    local last = boot(redis.call('LINDEX', KEYS[5], 0) or '')
    if not last or last.b ~= ARGV[2] then
      redis.call('LPUSH', KEYS[5], cjson.encode({b = ARGV[2], t = tonumber(ARGV[6]), h = ARGV[4], p = ARGV[8]}))
      redis.call('LTRIM', KEYS[5], 0, 15)
      redis.call('PEXPIRE', KEYS[5], ARGV[9])
      local seen, sightings, returns = {}, {}, 0
      local entries = redis.call('LRANGE', KEYS[5], 0, -1)
      for i = #entries, 1, -1 do
        local one = boot(entries[i])
        if one and seen[one.b] then
          returns = returns + 1
        elseif one then
          seen[one.b] = true
          sightings[#sightings + 1] = {b = one.b, h = one.h, p = one.p}
        end
      end
      if not who[6] and returns >= tonumber(ARGV[10]) then
        redis.call('HSET', KEYS[4], 'clonedMs', ARGV[6], 'clones', cjson.encode(sightings))
        who[6] = ARGV[6]
        marked = 1
      end
    end
    if who[6] and held[1] and held[4] ~= ARGV[2] then return {4, held[3] or '', marked} end
    local fence = redis.call('INCR', KEYS[2])
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'installId', ARGV[1], 'bootId', ARGV[2], 'coordinatorId', ARGV[3], 'hostname', ARGV[4], 'fence', fence)
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    redis.call('HSET', KEYS[3], 'installId', ARGV[1], 'bootId', ARGV[2], 'lastSeenMs', ARGV[6])
    return {1, fence, held[2] or '', marked}`,
};

/**
 * Prolongs a lease that is there, which is what every device does every few seconds.
 * in:  KEYS lease, desired, state, identity; ARGV fence, ttlMs, nowMs, keyHash or ''
 * out: {1, generation of desired or '0'}: kept; {0}: there is none of this stream; {2, why}, {3}: as of renewLease
 */
const keepLease: Script = {
  name: 'moefleetKeepLease',
  keys: 4,
  device: ['lease', 'desired', 'state', 'identity'],
  batched: true,
  lua: `
    local who = redis.call('HMGET', KEYS[4], 'revokedMs', 'revokedWhy', 'keyHash', 'releasedMs')
    if who[1] then return {2, who[2] or ''} end
    if ARGV[4] ~= '' and (who[4] or (who[3] and who[3] ~= ARGV[4])) then return {3} end
    if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return {0} end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    redis.call('HSET', KEYS[3], 'lastSeenMs', ARGV[3])
    return {1, redis.call('HGET', KEYS[2], 'generation') or '0'}`,
};

/**
 * Prolongs a lease; makes it anew where it ran out during an outage and nobody took it meanwhile.
 * in:  KEYS lease, fence, desired, state, identity; ARGV fence, installId, bootId, coordinatorId, hostname, ttlMs, nowMs,
 *      keyHash or ''
 * out: {1, generation of desired or '0'}: kept; {0}: a newer stream has the device;
 *      {2, why}: revoked; {3}: another key has the device id, or it was released
 */
const renewLease: Script = {
  name: 'moefleetRenewLease',
  keys: 5,
  device: ['lease', 'fence', 'desired', 'state', 'identity'],
  batched: true,
  lua: `
    local who = redis.call('HMGET', KEYS[5], 'revokedMs', 'revokedWhy', 'keyHash', 'releasedMs')
    if who[1] then return {2, who[2] or ''} end
    if ARGV[8] ~= '' and (who[4] or (who[3] and who[3] ~= ARGV[8])) then return {3} end
    local mine = tonumber(ARGV[1])
    local highest = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
    if highest > mine then return {0} end
    if highest < mine then redis.call('SET', KEYS[2], ARGV[1]) end
    redis.call('HSET', KEYS[1], 'installId', ARGV[2], 'bootId', ARGV[3], 'coordinatorId', ARGV[4], 'hostname', ARGV[5], 'fence', ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    redis.call('HSET', KEYS[4], 'lastSeenMs', ARGV[7])
    return {1, redis.call('HGET', KEYS[3], 'generation') or '0'}`,
};

/**
 * Gives a lease back, unless a newer stream has it.
 * in:  KEYS lease, state; ARGV fence, nowMs, milliseconds that it shall still hold
 * out: 1 released, 0 it was not ours
 */
const releaseLease: Script = {
  name: 'moefleetReleaseLease',
  keys: 2,
  device: ['lease', 'state'],
  batched: true,
  lua: `
    if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
    if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) else redis.call('DEL', KEYS[1]) end
    redis.call('HSET', KEYS[2], 'lastSeenMs', ARGV[2])
    return 1`,
};

/**
 * Writes fields of a device's state on behalf of a stream, unless a newer stream has the device. Tells what generation
 * it shall run, so that whoever reports need not ask; `settled` is written only where that is still the one desired.
 * in:  KEYS state, fence, desired; ARGV fence, settled generation or '', then field, value pairs
 * out: {1, generation of desired or '0'} written, {0} fenced off
 */
const writeState: Script = {
  name: 'moefleetWriteState',
  keys: 3,
  device: ['state', 'fence', 'desired'],
  batched: true,
  lua: `
    local highest = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
    if highest > tonumber(ARGV[1]) then return {0} end
    local desired = redis.call('HGET', KEYS[3], 'generation') or '0'
    redis.call('HSET', KEYS[1], unpack(ARGV, 3))
    if ARGV[2] == desired then redis.call('HSET', KEYS[1], 'settledGeneration', desired) end
    return {1, desired}`,
};

/**
 * Forgets a device. A stream that is still open is fenced off, so that it writes nothing of it again.
 * in:  KEYS fence, then all that is to go
 * out: number of keys that went
 */
const removeDevice: Script = {
  name: 'moefleetRemoveDevice',
  keys: 'any',
  lua: `
    if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('INCR', KEYS[1]) end
    return redis.call('DEL', unpack(KEYS, 2))`,
};

/**
 * A device as one step: all that its keys hold. A key of another type gives its error in place of its fields.
 * in:  KEYS any number of hashes
 * out: per key {field, value, ...} or the text of an error
 */
const readHashes: Script = {
  name: 'moefleetReadHashes',
  keys: 'any',
  batched: true,
  lua: `
    local all = {}
    for at, key in ipairs(KEYS) do
      local found = redis.pcall('HGETALL', key)
      all[at] = found.err or found
    end
    return all`,
};

/**
 * As little of a device as a change of settings asks for.
 * in:  KEYS state, labels
 * out: {info, model, labels as {field, value, ...}}, false for what is missing; {} for a device nobody has seen
 */
const readChangeSubject: Script = {
  name: 'moefleetReadChangeSubject',
  keys: 2,
  device: ['state', 'labels'],
  batched: true,
  lua: `
    if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
    local said = redis.call('HMGET', KEYS[1], 'info', 'model')
    return {said[1], said[2], redis.call('HGETALL', KEYS[2])}`,
};

/**
 * As little of a device as a change for all asks for, who are many.
 * in:  KEYS state, desired, pins, learned, lease
 * out: {} without a model; {model} where it has pins or learner's values of its own, or has not told what it runs;
 *      else {model, highest generation it has reported, 1 if it is online, generation and hash of desired}, false for what is missing
 */
const readFleetSubject: Script = {
  name: 'moefleetReadFleetSubject',
  keys: 5,
  device: ['state', 'desired', 'pins', 'learned', 'lease'],
  batched: true,
  lua: `
    local said = redis.call('HMGET', KEYS[1], 'model', 'reportedGeneration')
    if not said[1] then return {} end
    if not said[2] or redis.call('EXISTS', KEYS[3], KEYS[4]) > 0 then return {said[1]} end
    local desired = redis.call('HMGET', KEYS[2], 'generation', 'hash')
    return {said[1], said[2], redis.call('EXISTS', KEYS[5]), desired[1], desired[2]}`,
};

/**
 * What tells how far a device has come with a spec.
 * in:  KEYS state, desired, lease
 * out: {reported, settledGeneration, generation, hash and origin of desired, installId of the lease}, false for what is
 *      missing; {} for a device nobody has seen
 */
const readProgress: Script = {
  name: 'moefleetReadProgress',
  keys: 3,
  device: ['state', 'desired', 'lease'],
  batched: true,
  lua: `
    if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
    local state = redis.call('HMGET', KEYS[1], 'reported', 'settledGeneration')
    local desired = redis.call('HMGET', KEYS[2], 'generation', 'hash', 'origin')
    return {state[1], state[2], desired[1], desired[2], desired[3], redis.call('HGET', KEYS[3], 'installId')}`,
};

/**
 * Compare-and-set of desired: the new generation is one above the one that was read, or one above \`floor\` where the
 * device itself has reported a higher one. A generation that is no count, as decodeCount understands it, counts as 0:
 * Lua would read "nan", "1e3" and "0x10" as numbers, which no caller could then expect.
 * in:  KEYS desired, pins, learned; ARGV expected generation, floor, spec bytes, hash (hex), origin, 1: only where it has neither
 *      pins nor learner's values of its own
 * out: {1, generation written} or {0}
 */
const writeDesired: Script = {
  name: 'moefleetWriteDesired',
  keys: 3,
  device: ['desired', 'pins', 'learned'],
  batched: true,
  lua: `
    local digits = redis.call('HGET', KEYS[1], 'generation') or '0'
    local found = 0
    if #digits <= 16 and string.match(digits, '^%d+$') then found = tonumber(digits) end
    if found > 2^52 then found = 0 end
    if found ~= tonumber(ARGV[1]) or (ARGV[6] == '1' and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0) then return {0} end
    local generation = string.format('%.0f', math.max(found, tonumber(ARGV[2])) + 1)
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'generation', generation, 'spec', ARGV[3], 'hash', ARGV[4], 'origin', ARGV[5])
    return {1, generation}`,
};

/**
 * Adds a router window, dropping the oldest until both bounds hold.
 * in:  KEYS windows, windowBytes; ARGV window bytes, most windows, most bytes
 * out: number of windows dropped; 0 for one that is there already, because its acknowledgement was lost
 */
const pushWindow: Script = {
  name: 'moefleetPushWindow',
  keys: 2,
  lua: `
    if redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
    local count = redis.call('LPUSH', KEYS[1], ARGV[1])
    local bytes = (tonumber(redis.call('GET', KEYS[2]) or '0') or 0) + #ARGV[1]
    local dropped = 0
    while count > tonumber(ARGV[2]) or (bytes > tonumber(ARGV[3]) and count > 0) do
      local oldest = redis.call('RPOP', KEYS[1])
      if not oldest then break end
      bytes = bytes - #oldest
      count = count - 1
      dropped = dropped + 1
    end
    if count == 0 then bytes = 0 end
    redis.call('SET', KEYS[2], string.format('%.0f', math.max(bytes, 0)))
    return dropped`,
};

/**
 * Forgets a device's router windows.
 * in:  KEYS windows, windowBytes
 * out: how many there were, and their bytes
 */
const deleteWindows: Script = {
  name: 'moefleetDeleteWindows',
  keys: 2,
  lua: `
    local count = redis.call('LLEN', KEYS[1])
    local bytes = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
    redis.call('DEL', KEYS[1], KEYS[2])
    return {count, bytes}`,
};

/**
 * Stores a rollout and forgets the oldest beyond a bound.
 * in:  KEYS rollouts, rollout; ARGV id, JSON, createdMs, most rollouts, first part of a rollout's key
 * out: number of rollouts forgotten
 */
const putRollout: Script = {
  name: 'moefleetPutRollout',
  keys: 2,
  lua: `
    redis.call('SET', KEYS[2], ARGV[2])
    redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
    local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
    if surplus <= 0 then return 0 end
    for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, surplus - 1)) do
      redis.call('DEL', ARGV[5] .. id)
      redis.call('ZREM', KEYS[1], id)
    end
    return surplus`,
};

/**
 * Makes a staged value the value of its layer, unless the rollout has ended in another way meanwhile.
 * in:  KEYS pins; ARGV field of the staged value, field of the pin, JSON of the pin or '' to clear it, 1: even so
 * out: 1 promoted, 0 there was no staged value
 */
const promotePin: Script = {
  name: 'moefleetPromotePin',
  keys: 1,
  lua: `
    if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 and ARGV[4] ~= '1' then return 0 end
    if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[2]) else redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
    return 1`,
};

/**
 * Puts back the learner's value that was there before, unless another has been put there since.
 * in:  KEYS learned; ARGV model hash, bytes that are to go, bytes to put back or '' for none
 * out: 1 put back, 0 another is there
 */
const restoreLearned: Script = {
  name: 'moefleetRestoreLearned',
  keys: 1,
  lua: `
    if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
    if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
    return 1`,
};

/**
 * Removes a field of a hash, if it is what was read.
 * in:  KEYS pins; ARGV field, JSON as read
 * out: 1 removed, 0 it is another by now
 */
const removePin: Script = {
  name: 'moefleetRemovePin',
  keys: 1,
  lua: `
    if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
    return redis.call('HDEL', KEYS[1], ARGV[1])`,
};

/**
 * Forgets a time at which a pin ends, unless a later one has been set since.
 * in:  KEYS expiry; ARGV member, milliseconds
 * out: 1 forgotten, 0 it ends later, or is not there
 */
const forgetExpiry: Script = {
  name: 'moefleetForgetExpiry',
  keys: 1,
  lua: `
    local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if not ends or tonumber(ends) > tonumber(ARGV[2]) then return 0 end
    return redis.call('ZREM', KEYS[1], ARGV[1])`,
};

/**
 * Takes or keeps a turn that one coordinator has at a time.
 * in:  KEYS turn; ARGV coordinatorId, ttlMs (0: gives it back)
 * out: 1 it is ours (or was, and is given back), 0 another has it
 */
const takeTurn: Script = {
  name: 'moefleetTakeTurn',
  keys: 1,
  lua: `
    local holder = redis.call('GET', KEYS[1])
    if holder and holder ~= ARGV[1] then return 0 end
    if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
    return 1`,
};

/**
 * Compare-and-set of a staged rollout: the record and some of its rows, and which rollouts there are and go on. Forgets
 * the oldest that have ended beyond a bound.
 * in:  KEYS staged, active, record, rows; ARGV id, expected revision, new revision, JSON, createdMs, 1 while it goes on,
 *      most, first part of a record's key, then device id, JSON pairs
 * out: 1 written, 0 the revision is another
 */
const writeStagedRollout: Script = {
  name: 'moefleetWriteStagedRollout',
  keys: 4,
  lua: `
    local found = tonumber(redis.call('HGET', KEYS[3], 'revision') or '0') or 0
    if found ~= tonumber(ARGV[2]) then return 0 end
    redis.call('HSET', KEYS[3], 'revision', ARGV[3], 'record', ARGV[4])
    for at = 9, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[at], ARGV[at + 1]) end
    redis.call('ZADD', KEYS[1], ARGV[5], ARGV[1])
    if ARGV[6] == '1' then redis.call('SADD', KEYS[2], ARGV[1]) else redis.call('SREM', KEYS[2], ARGV[1]) end
    local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[7])
    if surplus > 0 then
      for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, surplus - 1)) do
        if redis.call('SISMEMBER', KEYS[2], id) == 0 then
          redis.call('DEL', ARGV[8] .. id, ARGV[8] .. id .. ':rows')
          redis.call('ZREM', KEYS[1], id)
        end
      end
    end
    return 1`,
};

/**
 * Writes an operator's record, unless someone else has since it was read.
 * in:  KEYS operators, operatorTokens; ARGV name, JSON as read ('' for none), JSON to write, hash now in force or '', hash no longer in force or ''
 * out: 1 written, 0 it has changed since
 */
const putOperator: Script = {
  name: 'moefleetPutOperator',
  keys: 2,
  lua: `
    if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    if ARGV[5] ~= '' then redis.call('HDEL', KEYS[2], ARGV[5]) end
    if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], ARGV[4], ARGV[1]) end
    return 1`,
};

export const LUA = { ...IDENTITY_LUA, ...PEER_LUA, ...WARM_LUA, putOperator, acquireLease, keepLease, renewLease, releaseLease, writeState, removeDevice, readHashes, readChangeSubject, readFleetSubject, readProgress, writeDesired, pushWindow, deleteWindows, putRollout, promotePin, restoreLearned, removePin, forgetExpiry, takeTurn, writeStagedRollout, countFrames } as const;
export const SCRIPTS: readonly Script[] = Object.values(LUA);
