/**
 * Counts telemetry frames exactly once. A frame carries totals since its boot began, so what is new in it is its
 * difference to the last frame counted of the same boot; frames that come late, twice, or by two coordinators at once
 * add nothing twice. The record of a device and the sums it adds to lie in one slot (keys.ts: a shard), so that both
 * change in one step.
 *
 * A device's record holds its latest boots, newest first, each with the sequence and the totals last counted. A frame
 * of an older boot that arrives after one of a newer is thus compared with its own boot. Counters that fall within a
 * boot cannot be true: the frame is refused and nothing changes.
 */
import type { Script } from './scripts';

/** In the order of the script's arguments and of the fields in a record. */
export const COUNTERS = ['decodeTokens', 'prefillTokens', 'hits', 'misses', 'swaps', 'flashBytes', 'requests', 'requestsFailed'] as const;
/** Counters kept in a ring: all of them floats, as 4 bytes each after the 4 of the step's number. */
export const RING_COUNTERS = ['decodeTokens', 'hits', 'misses', 'swaps', 'flashBytes'] as const;
export const RING_POINTS = 60;
export const RING_POINT_BYTES = 4 + 4 * RING_COUNTERS.length;
export const FRAME_OUTCOMES = ['counted', 'duplicate', 'refused', 'damaged'] as const;

/** Late frames of more boots than these are counted as if the boot were new. */
const MOST_BOOTS = 4;

const RING_PLACES = RING_COUNTERS.map((name) => COUNTERS.indexOf(name) + 1).join(', ');

/**
 * in:  KEYS sums (hash), ring of the sums, then per frame: record, ring, latest frame
 *      ARGV number of the step, most names of a kind, seconds that a record and a ring are kept, then per frame:
 *      boot id, sequence, model, class, the counters, bytes of the frame. No device twice.
 * out: per frame 0 counted, 1 duplicate, 2 refused, 3 a key holds something else
 */
export const countFrames: Script = {
  name: 'moefleetCountFrames',
  keys: 'any',
  lua: `
    local N, HEAD, PER = ${COUNTERS.length}, 4, ${COUNTERS.length + 5}
    local NAMES = {${COUNTERS.map((name) => `'${name}'`).join(', ')}}
    local RING = {${RING_PLACES}}
    local step, most = tonumber(ARGV[1]), tonumber(ARGV[2])
    redis.call('HLEN', KEYS[1])
    redis.call('STRLEN', KEYS[2])

    local function readBoots(bytes)
      local boots, at = {}, 1
      while at <= #bytes do
        local size = string.byte(bytes, at)
        if at + size + 8 * (N + 1) > #bytes then return {} end
        local boot = { id = string.sub(bytes, at + 1, at + size), base = {} }
        at = at + 1 + size
        boot.sequence, at = struct.unpack('<d', bytes, at)
        for i = 1, N do boot.base[i], at = struct.unpack('<d', bytes, at) end
        boots[#boots + 1] = boot
      end
      return boots
    end

    local function writeBoots(boots)
      local parts = {}
      for i = 1, math.min(#boots, ${MOST_BOOTS}) do
        local boot = boots[i]
        parts[#parts + 1] = string.char(#boot.id) .. boot.id .. struct.pack('<d', boot.sequence)
        for j = 1, N do parts[#parts + 1] = struct.pack('<d', boot.base[j]) end
      end
      return table.concat(parts)
    end

    local function addToRing(key, delta)
      local at = (step % ${RING_POINTS}) * ${RING_POINT_BYTES}
      local found = redis.call('GETRANGE', key, at, at + ${RING_POINT_BYTES - 1})
      local point = { 0, 0, 0, 0, 0 }
      if #found == ${RING_POINT_BYTES} then
        local held = struct.unpack('<I4', found)
        if held > step then return end
        if held == step then for i = 1, #RING do point[i] = struct.unpack('<f', found, 1 + 4 * i) end end
      end
      local bytes = struct.pack('<I4', step)
      for i = 1, #RING do bytes = bytes .. struct.pack('<f', point[i] + delta[RING[i]]) end
      redis.call('SETRANGE', key, at, bytes)
    end

    -- First everything is read and decided, then everything is written: no error can leave half of a frame.
    local frames, outcomes = {}, {}
    for f = 1, (#KEYS - 2) / 3 do
      local arg, key = HEAD + (f - 1) * PER, 2 + (f - 1) * 3
      local record = redis.pcall('GET', KEYS[key + 1])
      local ring = redis.pcall('STRLEN', KEYS[key + 2])
      local frame = { key = key, bytes = ARGV[arg + 4 + N + 1], model = ARGV[arg + 3], class = ARGV[arg + 4], delta = {}, newBoot = false }
      if type(record) == 'table' or type(ring) == 'table' then
        outcomes[f] = 3
      else
        frame.boots = readBoots(record or '')
        local id, sequence = ARGV[arg + 1], tonumber(ARGV[arg + 2])
        local place
        for i, boot in ipairs(frame.boots) do if boot.id == id then place = i end end
        if not place then
          place, frame.newBoot = 1, true
          local boot = { id = id, sequence = -1, base = {} }
          for i = 1, N do boot.base[i] = 0 end
          table.insert(frame.boots, 1, boot)
        end
        local boot = frame.boots[place]
        frame.newest = place == 1
        outcomes[f] = sequence > boot.sequence and 0 or 1
        for i = 1, N do
          frame.delta[i] = tonumber(ARGV[arg + 4 + i]) - boot.base[i]
          if frame.delta[i] < 0 and outcomes[f] == 0 then outcomes[f] = 2 end
        end
        if outcomes[f] == 0 then
          boot.sequence = sequence
          for i = 1, N do boot.base[i] = tonumber(ARGV[arg + 4 + i]) end
        end
      end
      frames[f] = frame
    end

    local sums, total = {}, {}
    for i = 1, N do total[i] = 0 end
    local function add(field, by) sums[field] = (sums[field] or 0) + by end
    local known = {}
    local function nameOf(kind, name)
      local full = kind .. '|' .. name
      if known[full] then return known[full] end
      if redis.call('HEXISTS', KEYS[1], full .. '|frames') == 0 then
        local count = tonumber(redis.call('HGET', KEYS[1], 'names|' .. kind) or '0') or 0
        if count >= most then
          full = kind .. '|other'
        else
          redis.call('HSET', KEYS[1], 'names|' .. kind, count + 1)
          redis.call('HSET', KEYS[1], full .. '|frames', 0)
        end
      end
      known[kind .. '|' .. name] = full
      return full
    end

    for f, frame in ipairs(frames) do
      add('frames|' .. outcomes[f], 1)
      if outcomes[f] == 0 then
        local key = frame.key
        redis.call('SET', KEYS[key + 1], writeBoots(frame.boots), 'EX', ARGV[3])
        addToRing(KEYS[key + 2], frame.delta)
        redis.call('EXPIRE', KEYS[key + 2], ARGV[4])
        if frame.newest then redis.call('SET', KEYS[key + 3], frame.bytes, 'EX', ARGV[3]) end
        if frame.newBoot then add('boots', 1) end
        local model, class = nameOf('model', frame.model), nameOf('class', frame.class)
        add(model .. '|frames', 1)
        add(class .. '|frames', 1)
        for i = 1, N do
          local by = frame.delta[i]
          if by > 0 then
            total[i] = total[i] + by
            add('all|' .. NAMES[i], by)
            add(model .. '|' .. NAMES[i], by)
            add(class .. '|' .. NAMES[i], by)
          end
        end
      end
    end
    -- A sum that is full stays as it is: there is nobody who could do better with it.
    for field, by in pairs(sums) do redis.pcall('HINCRBY', KEYS[1], field, string.format('%.0f', by)) end
    addToRing(KEYS[2], total)
    redis.call('EXPIRE', KEYS[2], ARGV[4])
    return outcomes`,
};
