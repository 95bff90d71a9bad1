/** A rollout as it is stored: who shall run what, and how far each device has come. */

export const ROW_STATES = ['pending', 'applying', 'applied', 'failed', 'offline', 'unchanged', 'superseded'] as const;
export type RowState = typeof ROW_STATES[number];
export const ROLLOUT_STATES = ['running', 'done', 'incomplete'] as const;
export type RolloutState = typeof ROLLOUT_STATES[number];

export interface RolloutRow {
  readonly deviceId: string;
  readonly state: RowState;
  /** of desired, as this rollout has written or found it; 0 where the device has none */
  readonly generation: number;
  /** hex hash of the spec it shall run; empty where it has none */
  readonly hash: string;
  readonly reason: string;
}

export interface RolloutRecord {
  readonly id: string;
  readonly what: string;
  readonly origin: string;
  readonly createdMs: number;
  /** when whoever waits for it stops waiting */
  readonly deadlineMs: number;
  readonly state: RolloutState;
  readonly rows: readonly RolloutRow[];
}

/** Throws a TypeError for what is no rollout. */
export function decodeRollout(json: string): RolloutRecord {
  const value = JSON.parse(json) as Partial<RolloutRecord> | null;
  const texts = [value?.id, value?.what, value?.origin];
  const numbers = [value?.createdMs, value?.deadlineMs];
  if (!value || !texts.every((text) => typeof text === 'string') || !numbers.every(isCount)) throw new TypeError('fields are missing');
  if (!ROLLOUT_STATES.includes(value.state as RolloutState)) throw new TypeError('its state is unknown');
  if (!Array.isArray(value.rows) || !value.rows.every(isRow)) throw new TypeError('its devices are no list of rows');
  return value as RolloutRecord;
}

function isRow(row: unknown): row is RolloutRow {
  const { deviceId, state, generation, hash, reason } = (row ?? {}) as Partial<RolloutRow>;
  return [deviceId, hash, reason].every((text) => typeof text === 'string') && ROW_STATES.includes(state as RowState) && isCount(generation);
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
