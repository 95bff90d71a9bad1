/** How staged rollouts are shown through the API. */
import { type Rollout, RolloutDevice_State as DeviceState, Rollout_State as RolloutState, type StagedDevice, type StagedRollout as Message, StagedRollout_State as State } from '@moefleet/proto';
import type { StagedLayer } from '../registry/staged-value';
import { isOver, type Finding, type StagedRollout, type StagedRow, type StagedRowState, type StagedState } from '../registry/staged-rollout';

const STATES: Record<StagedState, State> = {
  planned: State.STATE_PLANNED, running: State.STATE_RUNNING, paused: State.STATE_PAUSED, inconclusive: State.STATE_INCONCLUSIVE,
  rolling_back: State.STATE_ROLLING_BACK, rolled_back: State.STATE_ROLLED_BACK, superseded: State.STATE_SUPERSEDED, done: State.STATE_DONE,
};

/** `rows` empty: without devices. */
export function viewStaged(rollout: StagedRollout, rows: readonly StagedRow[]): Message {
  const counts: Record<string, number> = {};
  for (const row of rows) counts[row.state] = (counts[row.state] ?? 0) + 1;
  return {
    id: rollout.id, what: rollout.what, who: rollout.who, why: rollout.why, createdMs: BigInt(rollout.createdMs), updatedMs: BigInt(rollout.updatedMs),
    state: STATES[rollout.state], reason: rollout.reason, stage: rollout.stage, phase: rollout.phase, stages: [...rollout.stages], gates: [...rollout.gates],
    counts, devices: [...rows].sort(byStage).map(viewRow), soakMs: rollout.soakMs, maxUnavailable: rollout.maxUnavailable, deadlineMs: rollout.deadlineMs, revision: BigInt(rollout.revision), layer: layerName(rollout.layer),
  };
}

function layerName(layer: StagedLayer): string {
  switch (layer.t) {
    case 'group': return `group ${layer.selector}`;
    case 'device': return `device ${layer.deviceId}`;
    default: return layer.t;
  }
}

function byStage(a: StagedRow, b: StagedRow): number {
  return (a.stage || Infinity) - (b.stage || Infinity) || (a.deviceId < b.deviceId ? -1 : 1);
}

function viewRow(row: StagedRow): StagedDevice {
  return {
    deviceId: row.deviceId, stage: row.stage, state: row.state, generation: BigInt(row.generation), reason: row.reason,
    lastGoodHash: row.lastGood?.hash ?? '', hash: row.hash, findings: row.findings.map(viewFinding),
  };
}

function viewFinding({ gate, verdict, value, low, high, limit, windows, text }: Finding) {
  return { gate, verdict, value: value ?? undefined, low: low ?? undefined, high: high ?? undefined, limit: limit ?? undefined, windows, text };
}

const ROW_STATES: Record<StagedRowState, DeviceState> = {
  waiting: DeviceState.STATE_PENDING, pending: DeviceState.STATE_APPLYING, applied: DeviceState.STATE_APPLIED, failed: DeviceState.STATE_FAILED,
  offline: DeviceState.STATE_OFFLINE, unchanged: DeviceState.STATE_UNCHANGED, reverting: DeviceState.STATE_SUPERSEDED, reverted: DeviceState.STATE_SUPERSEDED,
  leaving: DeviceState.STATE_SUPERSEDED, superseded: DeviceState.STATE_SUPERSEDED,
};

/** For clients that know rollouts of one stage only. */
export function viewStagedAsRollout(rollout: StagedRollout, rows: readonly StagedRow[]): Rollout {
  return {
    id: rollout.id, what: rollout.what, origin: `${rollout.who}${rollout.why ? `: ${rollout.why}` : ''}`, createdMs: BigInt(rollout.createdMs),
    state: !isOver(rollout) ? RolloutState.STATE_RUNNING : rollout.state === 'done' ? RolloutState.STATE_DONE : RolloutState.STATE_INCOMPLETE,
    devices: rows.map((row) => ({ deviceId: row.deviceId, state: ROW_STATES[row.state], generation: BigInt(row.generation), reason: row.reason })),
  };
}
