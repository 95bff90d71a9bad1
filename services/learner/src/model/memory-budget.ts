/**
 * The bytes of experts that a device has shown it can spare: additive increase while it is calm, multiplicative decrease
 * when memory ran short, and a memory of the level at which it last did, which is not tried again for a day. The agent
 * itself gives way within a quarter of a second and grows back; this is the slower loop around it, so that what the fleet
 * asks for is what the device can hold.
 */
export interface MemoryState {
  /** at most the device's own limit, at least one token cycle */
  readonly safeBytes: number;
  /** the lowest level at which memory ran short of late */
  readonly badBytes: number | null;
  /** when memory was last short */
  readonly badAtMs: number;
  /** when it was last changed: in a shortage, when that was first answered */
  readonly sinceMs: number;
  /** how often memory ran short */
  readonly shortages: number;
}

export interface MemorySight {
  /** the device's own limit */
  readonly limitBytes: number;
  /** one token cycle: below it nothing is ever a hit */
  readonly floorBytes: number;
  /** what the cache took when the frame was made */
  readonly inForceBytes: number;
  /** what the agent holds its cache to, as memory is short or may become so */
  readonly cutBytes: number | null;
  /** cuts since the frame before */
  readonly newShrinks: number;
  readonly nowMs: number;
}

const DECREASE = 0.8;
/** What the agent leaves of its cache at each look while memory is short. */
const AGENT_CUT = 0.7;
/** A shortage shows in several frames; it is answered once. */
const EPISODE_MS = 60_000;
/** Share of the limit by which a calm device grows, per calm stretch. */
const INCREASE = 0.05;
const CALM_MS = 10 * 60_000;
const MEMORY_MS = 24 * 3_600_000;
/** How close to a bad level it may come while that is remembered. */
const BELOW_BAD = 0.9;

/** `state` null: seen for the first time. */
export function observeMemory(state: MemoryState | null, sight: MemorySight): MemoryState {
  const { limitBytes, floorBytes, nowMs } = sight;
  const clamp = (bytes: number) => Math.floor(Math.max(Math.min(bytes, limitBytes), Math.min(floorBytes, limitBytes)));
  const before = state ?? { safeBytes: limitBytes, badBytes: null, badAtMs: 0, sinceMs: nowMs, shortages: 0 };
  // The agent began within the memory it found and has not been short of it: what it holds, and no level that was too much.
  if (sight.newShrinks === 0 && sight.cutBytes !== null && before.badBytes === null) return { ...before, safeBytes: clamp(sight.cutBytes), sinceMs: nowMs };
  if (sight.newShrinks > 0 || sight.cutBytes !== null) {
    const answered = nowMs - before.badAtMs < EPISODE_MS || (sight.newShrinks === 0 && remembered(before, nowMs));
    if (before.badBytes !== null && answered) {
      // A cut that still stands is no new shortage, and what the device holds.
      const standing = sight.cutBytes !== null && nowMs - before.sinceMs >= EPISODE_MS ? sight.cutBytes : Infinity;
      return { ...before, safeBytes: clamp(Math.min(before.safeBytes, standing)), badAtMs: nowMs };
    }
    // The agent's cut has already come when its frame is made: what it held before was that much more.
    const held = sight.inForceBytes > 0 ? sight.inForceBytes / (sight.cutBytes === null ? 1 : AGENT_CUT) : limitBytes;
    const bad = clamp(Math.min(before.safeBytes, held));
    return {
      safeBytes: clamp(bad * DECREASE), badBytes: remembered(before, nowMs) ? Math.min(before.badBytes!, bad) : bad, badAtMs: nowMs, sinceMs: nowMs,
      shortages: before.shortages + 1,
    };
  }
  const known = remembered(before, nowMs);
  const ceiling = known ? before.badBytes! * BELOW_BAD : limitBytes;
  const calm = nowMs - Math.max(before.sinceMs, before.badAtMs) >= CALM_MS && before.safeBytes < ceiling;
  return {
    ...before,
    safeBytes: clamp(calm ? Math.min(before.safeBytes + INCREASE * limitBytes, ceiling) : before.safeBytes),
    badBytes: known ? before.badBytes : null,
    sinceMs: calm ? nowMs : before.sinceMs,
  };
}

function remembered({ badBytes, badAtMs }: MemoryState, nowMs: number): boolean {
  return badBytes !== null && nowMs - badAtMs < MEMORY_MS;
}
