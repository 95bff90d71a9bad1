/** The Lua of identities: enrolment tokens, who has which device id, and what a new stream is told. See scripts.ts. */
import type { Script } from './scripts';

/**
 * Takes one use of an enrolment token for a device. A device that asks again, because the answer was lost, costs no
 * second use.
 * in:  KEYS token, users; ARGV hash of the secret, device (id, installation and key as one text), nowMs
 * out: {1, labels as JSON}; {0, 'unknown'|'revoked'|'expired'|'used up', detail}
 */
const useToken: Script = {
  name: 'moefleetUseToken',
  keys: 2,
  lua: `
    local t = redis.call('HMGET', KEYS[1], 'secretHash', 'labels', 'uses', 'used', 'expiresMs', 'revokedMs', 'why')
    if not t[1] or t[1] ~= ARGV[1] then return {0, 'unknown', ''} end
    if t[6] then return {0, 'revoked', t[7] or ''} end
    if (tonumber(t[5] or '') or 0) <= tonumber(ARGV[3]) then return {0, 'expired', t[5] or ''} end
    if redis.call('SISMEMBER', KEYS[2], ARGV[2]) == 0 then
      if (tonumber(t[4] or '') or 0) >= (tonumber(t[3] or '') or 0) then return {0, 'used up', t[3] or '0'} end
      redis.call('HINCRBY', KEYS[1], 'used', 1)
      redis.call('SADD', KEYS[2], ARGV[2])
      local ttl = redis.call('PTTL', KEYS[1])
      if ttl > 0 then redis.call('PEXPIRE', KEYS[2], ttl) end
    end
    return {1, t[2] or '{}'}`,
};

/**
 * A use that was taken and that Redis has lost.
 * in:  KEYS token, users; ARGV device
 * out: 1 taken again, 0 it is known, or the token is not
 */
const useTokenAgain: Script = {
  name: 'moefleetUseTokenAgain',
  keys: 2,
  lua: `
    if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return 0 end
    redis.call('HINCRBY', KEYS[1], 'used', 1)
    local ttl = redis.call('PTTL', KEYS[1])
    if ttl > 0 then redis.call('PEXPIRE', KEYS[2], ttl) end
    return 1`,
};

/**
 * Gives a use back, where the enrolment failed after it was taken.
 * in:  KEYS token, users; ARGV device
 * out: 1 given back, 0 it had taken none
 */
const returnToken: Script = {
  name: 'moefleetReturnToken',
  keys: 2,
  lua: `
    if redis.call('SREM', KEYS[2], ARGV[1]) == 0 then return 0 end
    redis.call('HINCRBY', KEYS[1], 'used', -1)
    return 1`,
};

/**
 * Gives a device id to an installation and its key, unless another has it and it was not released.
 * in:  KEYS identity, labels; ARGV installId, keyHash, tokenId, nowMs, hostname, then label, value pairs
 * out: {1}; {0, hostname of the holder}; {2, why it is revoked}
 */
const claimIdentity: Script = {
  name: 'moefleetClaimIdentity',
  keys: 2,
  lua: `
    local had = redis.call('HMGET', KEYS[1], 'keyHash', 'installId', 'releasedMs', 'revokedMs', 'revokedWhy', 'hostname')
    if had[4] then return {2, had[5] or ''} end
    local other = had[1] and (had[1] ~= ARGV[2] or had[2] ~= ARGV[1])
    if other and not had[3] then return {0, had[6] or ''} end
    redis.call('HDEL', KEYS[1], 'releasedMs', 'clonedMs', 'clones')
    redis.call('HSET', KEYS[1], 'installId', ARGV[1], 'keyHash', ARGV[2], 'tokenId', ARGV[3], 'enrolledMs', ARGV[4], 'hostname', ARGV[5])
    if #ARGV > 5 then redis.call('HSET', KEYS[2], unpack(ARGV, 6)) end
    return {1}`,
};

export const IDENTITY_LUA = { useToken, useTokenAgain, returnToken, claimIdentity } as const;
