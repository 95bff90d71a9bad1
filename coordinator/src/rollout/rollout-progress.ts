/** How far a rollout has come, judged from what the registry holds about each device. Pure. */
import { SpecState } from '@moefleet/proto';
import { type DeviceProgress, type DeviceRecord, speaksOf } from '../registry/device-record';
import type { RolloutRecord, RolloutRow, RolloutState, RowState } from '../registry/rollout-record';

/** Rows that will not change by waiting. An offline device may still come back while others are waited for. */
const FINAL: readonly RowState[] = ['applied', 'failed', 'unchanged', 'superseded'];

/** Of a row whose device is not connected. */
export const OFFLINE = { state: 'offline', reason: 'not connected; it gets the change when it comes back' } as const;

export function isFinal(row: RolloutRow): boolean {
  return FINAL.includes(row.state);
}

/** The row as it stands now; `device` null if the registry has lost it. */
export function judgeRow(row: RolloutRow, device: DeviceProgress | null): RolloutRow {
  if (isFinal(row)) return row;
  if (!device) return { ...row, state: 'failed', reason: 'the registry no longer knows the device' };
  const { desired, reported } = device;
  if (desired && desired.generation > BigInt(row.generation) && desired.hash !== row.hash) {
    return { ...row, state: 'superseded', reason: `generation ${desired.generation} has replaced it: ${desired.origin}` };
  }
  const speaksOfIt = reported !== undefined && (reported.generation > BigInt(row.generation) || speaksOf(reported, BigInt(row.generation), row.hash));
  if (speaksOfIt && reported.state === SpecState.SPEC_STATE_FAILED) {
    return { ...row, state: 'failed', reason: reported.reason || 'the device gave no reason' };
  }
  if (runs(device, row.hash, row.generation)) return { ...row, state: 'applied', reason: '' };
  if (!device.online) return { ...row, ...OFFLINE };
  const applying = speaksOfIt && reported.state === SpecState.SPEC_STATE_APPLYING;
  return { ...row, state: applying ? 'applying' : 'pending', reason: '' };
}

/** Whether the device runs the spec of `generation`, with nothing else on its way to it. */
export function runs(device: Pick<DeviceRecord, 'reported' | 'settledGeneration'>, hash: string, generation: number): boolean {
  const { reported } = device;
  return reported !== undefined && reported.state !== SpecState.SPEC_STATE_APPLYING
    && reported.appliedHash.toString('hex') === hash && device.settledGeneration >= BigInt(generation);
}

/** Running until each device has settled or is offline, or the deadline has passed. */
export function judgeRollout(rollout: RolloutRecord, rows: readonly RolloutRow[], nowMs: number): RolloutRecord {
  return { ...rollout, rows, state: judgeState(rows, nowMs >= rollout.deadlineMs) };
}

function judgeState(rows: readonly RolloutRow[], late: boolean): RolloutState {
  if (!late && rows.some((row) => !isFinal(row) && row.state !== 'offline')) return 'running';
  return rows.every((row) => ['applied', 'unchanged', 'offline'].includes(row.state)) ? 'done' : 'incomplete';
}
