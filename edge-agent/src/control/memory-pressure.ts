/**
 * How much memory the expert cache may take while others need it: a pure function of what was decided before and of
 * what the machine says now. Giving back is quick, taking again is slow, as the level of others' need is not known
 * (the rule of TCP): under pressure at once to 70% of what is held, or by as much as is missing where that is more;
 * after a time of calm back in small steps, and near the level at which pressure came only after a long one.
 *
 * A cache fills by far more between two looks than is kept free. So what it may hold is bounded before that by what there is:
 * however much of its room is filled until the next look, `lowBytes` stay free, and what a prompt takes. At first by less, as an
 * agent that has answered nothing yet will take more.
 */
import { formatSize } from '@moefleet/runtime';

export interface PressurePolicy {
  /** less memory available than this is pressure */
  lowBytes: number;
  /** so is this share of time, in percent, in which some task stood still for memory */
  stallPercent: number;
}

export interface MemorySample {
  nowMs: number;
  availableBytes: number;
  /** null where the kernel does not tell */
  stallPercent: number | null;
  /** what the cache would take were memory plenty */
  wantedBytes: number;
  /** one token cycle: nothing can run below it */
  floorBytes: number;
  /** expert bytes in memory now; 0 where there is so much memory that nobody has asked */
  heldBytes: number;
  /** what else the engine may take at any moment, to read a prompt */
  promptBytes: number;
}

export interface PressureState {
  /** most bytes of experts; null: as many as are wanted */
  limitBytes: number | null;
  /** where pressure came last; null: not known, or long ago */
  ceilingBytes: number | null;
  /** since when there has been no pressure, nor nearly; null: there is */
  calmSinceMs: number | null;
  changedMs: number;
}

/** `bound`: there is no want of memory, but would be if the cache filled up. */
export type PressureChange = { t: 'shrink' | 'bound' | 'grow'; limitBytes: number | null; reason: string };

export const NO_PRESSURE: PressureState = { limitBytes: null, ceilingBytes: null, calmSinceMs: null, changedMs: -Infinity };

const SHRINK_TO = 0.7;
/** Stalls are measured over a second, so for that long they still tell of what was before. */
const STALL_WINDOW_MS = 1_000;
const CALM_MS = 30_000;
const GROW_EVERY_MS = 10_000;
const GROW_BY = 0.05;
/** The same where no pressure has come: the first bound is a guess on the safe side, and each step is within what is free. */
const UNPRESSED_CALM_MS = 5_000;
const UNPRESSED_EVERY_MS = 2_000;
/** This near to where pressure came, it is expected to come again. */
const NEAR_CEILING = 0.9;
const HOLD_MS = 600_000;
/** Calm asks for more than the absence of pressure, lest each step up brings the next step down. */
const CALM_BYTES = 2;
const CALM_STALL = 0.5;

/** What two processes of Node took more for their first answers than when they were ready for them: 6 to 9 MiB. */
export const FIRST_ANSWERS_BYTES = 9 * 2 ** 20;

/** What is too little where nobody says: a twentieth of the memory, within reason on the smallest and the largest devices. */
export function defaultLowBytes(totalBytes: number): number {
  return Math.min(Math.max(totalBytes / 20, 64 * 2 ** 20), totalBytes / 6, 2 ** 30);
}

/** Why this is pressure; null where it is none. */
export function pressureOf(sample: Pick<MemorySample, 'availableBytes' | 'stallPercent'>, policy: PressurePolicy): string | null {
  if (sample.availableBytes < policy.lowBytes) return `${formatSize(sample.availableBytes)} of memory are left, below ${formatSize(policy.lowBytes)} (--memory-low)`;
  if ((sample.stallPercent ?? 0) >= policy.stallPercent) return `tasks stand still for memory ${sample.stallPercent!.toFixed(1)}% of the time, from ${policy.stallPercent}% on is too much (--memory-stall)`;
  return null;
}

export function nextPressure(state: PressureState, sample: MemorySample, policy: PressurePolicy): { state: PressureState; change: PressureChange | null } {
  const reason = pressureOf(sample, policy);
  if (reason !== null) return shrink({ ...state, calmSinceMs: null }, sample, policy, reason);
  const bounded = bound(state, sample, policy);
  if (bounded) return bounded;
  const calm = spareBytes(state, sample) >= calmBytes(state, sample, policy) && (sample.stallPercent ?? 0) < CALM_STALL * policy.stallPercent;
  if (!calm) return { state: { ...state, calmSinceMs: null }, change: null };
  return grow({ ...state, calmSinceMs: state.calmSinceMs ?? sample.nowMs }, sample, policy);
}

/** What the cache of a model that has just been opened, and holds nothing yet, may hold; null: all that is wanted. */
export function firstLimit({ availableBytes, wantedBytes, floorBytes, promptBytes }: Omit<MemorySample, 'nowMs' | 'stallPercent' | 'heldBytes'>, policy: PressurePolicy): number | null {
  const room = availableBytes - policy.lowBytes - promptBytes - FIRST_ANSWERS_BYTES;
  return room >= wantedBytes ? null : Math.max(floorBytes, Math.floor(room));
}

function grantedBytes({ limitBytes }: PressureState, { wantedBytes }: MemorySample): number {
  return Math.min(limitBytes ?? wantedBytes, wantedBytes);
}

/** What there would be with the cache filled. */
function spareBytes(state: PressureState, sample: MemorySample): number {
  return sample.availableBytes - Math.max(0, grantedBytes(state, sample) - sample.heldBytes);
}

/** Where no pressure has come yet, nothing is known of others' need, and the bound above is enough. */
function calmBytes({ ceilingBytes }: PressureState, { promptBytes }: MemorySample, { lowBytes }: PressurePolicy): number {
  return ceilingBytes === null ? lowBytes + promptBytes : Math.max(CALM_BYTES * lowBytes, lowBytes + promptBytes);
}

function stepBytes({ wantedBytes, floorBytes }: MemorySample): number {
  return Math.ceil(Math.max(wantedBytes, floorBytes) * GROW_BY);
}

function bound(state: PressureState, sample: MemorySample, { lowBytes }: PressurePolicy): { state: PressureState; change: PressureChange } | null {
  const { nowMs, availableBytes, heldBytes, floorBytes, promptBytes } = sample;
  const granted = grantedBytes(state, sample);
  const unfilled = granted - heldBytes;
  if (spareBytes(state, sample) >= lowBytes || unfilled < stepBytes(sample)) return null;
  const limitBytes = Math.max(floorBytes, Math.floor(heldBytes + availableBytes - lowBytes - promptBytes));
  if (limitBytes >= granted) return null;
  const reason = `${formatSize(availableBytes)} of memory are left, and the cache would take ${formatSize(unfilled)} more; ${formatSize(lowBytes)} are to stay free (--memory-low)`;
  return { state: { ...state, limitBytes, changedMs: nowMs }, change: { t: 'bound', limitBytes, reason } };
}

function shrink(state: PressureState, sample: MemorySample, policy: PressurePolicy, reason: string): { state: PressureState; change: PressureChange | null } {
  const { nowMs, floorBytes } = sample;
  const missing = policy.lowBytes - sample.availableBytes;
  if (missing <= 0 && nowMs - state.changedMs < STALL_WINDOW_MS) return { state, change: null };
  const granted = grantedBytes(state, sample);
  const held = Math.min(granted, Math.max(sample.heldBytes, floorBytes));
  const limitBytes = Math.max(floorBytes, Math.floor(Math.min(held * SHRINK_TO, held - missing)));
  if (limitBytes >= granted) return { state, change: null };
  return { state: { ...state, limitBytes, ceilingBytes: held, changedMs: nowMs }, change: { t: 'shrink', limitBytes, reason } };
}

function grow(state: PressureState, sample: MemorySample, policy: PressurePolicy): { state: PressureState; change: PressureChange | null } {
  const { nowMs, wantedBytes } = sample;
  const { limitBytes, ceilingBytes } = state;
  const calmMs = nowMs - state.calmSinceMs!;
  const [calmEnoughMs, everyMs] = ceilingBytes === null ? [UNPRESSED_CALM_MS, UNPRESSED_EVERY_MS] : [CALM_MS, GROW_EVERY_MS];
  if (limitBytes === null || calmMs < calmEnoughMs || nowMs - state.changedMs < everyMs) return { state, change: null };
  const step = stepBytes(sample);
  if (spareBytes(state, sample) - step < calmBytes(state, sample, policy)) return { state, change: null };
  const next = limitBytes + step;
  const atCeiling = ceilingBytes !== null && next > ceilingBytes * NEAR_CEILING;
  if (atCeiling && Math.min(calmMs, nowMs - state.changedMs) < HOLD_MS) return { state, change: null };
  const reason = `no pressure for ${Math.round(calmMs / 1000)} s`;
  if (next >= wantedBytes) return { state: { ...NO_PRESSURE, calmSinceMs: state.calmSinceMs, changedMs: nowMs }, change: { t: 'grow', limitBytes: null, reason } };
  return { state: { ...state, limitBytes: next, changedMs: nowMs }, change: { t: 'grow', limitBytes: next, reason } };
}
