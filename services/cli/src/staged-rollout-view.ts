/** Staged rollouts as people and scripts see them. */
import { type PlanRolloutResponse, type StagedRollout, StagedRollout_State as State } from '@moefleet/proto';
import { EXIT } from './failure';
import { enumName, type JsonValue, toJson } from './json-text';
import { NONE, pairs, table } from './table';

export function stagedState(rollout: StagedRollout): string {
  return enumName(State, 'STATE_', rollout.state);
}

/** Whether nothing will change any more by itself. */
export function isHeld({ state }: StagedRollout): boolean {
  return [State.STATE_PAUSED, State.STATE_INCONCLUSIVE, State.STATE_ROLLED_BACK, State.STATE_SUPERSEDED, State.STATE_DONE].includes(state);
}

/** 0: done; 3: done but for offline devices; 1: anything else that ends or holds it. */
export function stagedExitCode(rollout: StagedRollout): number {
  if (rollout.state !== State.STATE_DONE) return EXIT.failed;
  return rollout.devices.some((device) => device.state === 'offline') ? EXIT.offline : EXIT.ok;
}

export function stagedJson(rollout: StagedRollout): JsonValue {
  return toJson({
    ...rollout, state: stagedState(rollout),
    devices: rollout.devices.map((device) => ({ ...device, findings: device.findings.map((finding) => ({ ...finding, value: finding.value ?? null, low: finding.low ?? null, high: finding.high ?? null, limit: finding.limit ?? null })) })),
  });
}

export function stagedListText(rollouts: readonly StagedRollout[]): string {
  if (rollouts.length === 0) return 'no rollouts yet; start one with: moefleet lambda set 0.25 --all --stages 1,25%,100%\n';
  return table(['ID', 'STATE', 'STAGE', 'LAYER', 'WHAT', 'SINCE', 'WHO', 'WHY'], rollouts.map((rollout) => [
    rollout.id, stagedState(rollout), `${rollout.stage}/${rollout.stages.length}`, rollout.layer || NONE, rollout.what, new Date(Number(rollout.createdMs)).toISOString(), rollout.who, rollout.reason || rollout.why,
  ]));
}

export function stagedText(rollout: StagedRollout): string {
  const rows: [string, string][] = [
    ['rollout', rollout.id], ['what', rollout.what], ['layer', rollout.layer || NONE], ['who', `${rollout.who}${rollout.why ? `: ${rollout.why}` : ''}`],
    ['state', `${stagedState(rollout)}${rollout.reason ? `: ${rollout.reason}` : ''}`],
    ['stages', stagesText(rollout)], ['gates', rollout.gates.join(', ') || 'none'],
    ['soak', `${rollout.soakMs / 1000} s, deadline ${rollout.deadlineMs / 1000} s, ${rollout.maxUnavailable ? `at most ${rollout.maxUnavailable} unavailable` : 'none may fail'}`],
  ];
  const devices = table(['DEVICE', 'STAGE', 'STATE', 'GENERATION', 'LAST GOOD', 'WHY'], rollout.devices.map((device) => [
    device.deviceId, device.stage ? String(device.stage) : NONE, device.state.toUpperCase(), device.generation ? String(device.generation) : NONE, device.lastGoodHash.slice(0, 12) || NONE, device.reason,
  ]), [1, 3]);
  const findings = rollout.devices.flatMap((device) => device.findings.map((finding) => [device.deviceId, finding.gate, finding.verdict.toUpperCase(), finding.text]));
  return `${pairs(rows)}\n${devices}${findings.length > 0 ? `\n${table(['DEVICE', 'GATE', 'VERDICT', 'MEASURED'], findings)}` : ''}`;
}

function stagesText({ stages, stage, phase }: StagedRollout): string {
  return stages.map((one, at) => `${one.asked} (${one.devices})${at + 1 === stage ? ` <- ${phase}` : ''}`).join(', ') || NONE;
}

/** One line of progress. */
export function progressText(rollout: StagedRollout): string {
  const counts = Object.entries(rollout.counts).sort().map(([state, count]) => `${count} ${state}`).join(', ');
  return `${stagedState(rollout)}, stage ${rollout.stage} of ${rollout.stages.length} (${rollout.phase}): ${counts}${rollout.reason ? `; ${rollout.reason}` : ''}`;
}

export function planText(plan: PlanRolloutResponse): string {
  const devices = table(['DEVICE', 'ONLINE', 'STAGE', 'BEFORE', 'AFTER', 'WHY UNCHANGED'], plan.devices.map((device) => [
    device.deviceId, device.online ? 'yes' : 'no', device.stage ? String(device.stage) : NONE, device.before, device.after, device.unchanged,
  ]), [2]);
  return `${pairs([
    ['plan', `${plan.what} (nothing has been changed)`], ['stages', plan.stages.join(', ') || 'none: no device would change'], ['gates', plan.gates.join(', ') || 'none'],
    ...(plan.supersedes.length > 0 ? [['supersedes', plan.supersedes.join(', ')] as [string, string]] : []),
  ])}\n${devices}`;
}
