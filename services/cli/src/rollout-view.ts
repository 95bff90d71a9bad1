/** What became of a change, device by device, and what that means for the exit code. */
import { type Rollout, type RolloutDevice, RolloutDevice_State as State, Rollout_State } from '@moefleet/proto';
import { EXIT } from './failure';
import { enumName, type JsonValue, toJson } from './json-text';
import { table } from './table';

const SETTLED = [State.STATE_APPLIED, State.STATE_UNCHANGED];

export function stateName(state: State): string {
  return enumName(State, 'STATE_', state);
}

/** Devices that do not run the change. */
export function notApplied(rollout: Rollout): RolloutDevice[] {
  return rollout.devices.filter((device) => !SETTLED.includes(device.state));
}

/** 0: all have applied it, or had nothing to change; 3: only offline ones are missing; 1: some failed or are late. */
export function rolloutExitCode(rollout: Rollout): number {
  const missing = notApplied(rollout);
  if (missing.length === 0) return EXIT.ok;
  return missing.every((device) => device.state === State.STATE_OFFLINE) ? EXIT.offline : EXIT.failed;
}

export function rolloutJson(rollout: Rollout): JsonValue {
  return toJson({
    rollout: {
      ...rollout,
      state: enumName(Rollout_State, 'STATE_', rollout.state),
      devices: sorted(rollout.devices).map((device) => ({ ...device, state: stateName(device.state) })),
    },
    notApplied: sorted(notApplied(rollout)).map((device) => device.deviceId),
  });
}

export function rolloutText(rollout: Rollout): string {
  if (rollout.devices.length === 0) return `${rollout.what}: no device matches yet; those that join get it\n`;
  return table(['DEVICE', 'STATE', 'GENERATION', 'WHY'],
    sorted(rollout.devices).map((device) => [device.deviceId, stateName(device.state), String(device.generation), device.reason]), [2]);
}

/** One line per device that does not run the change, for standard error; empty where all do. */
export function missingText(rollout: Rollout): string {
  return sorted(notApplied(rollout)).map((device) => `${device.deviceId}: ${explain(device)}\n`).join('');
}

function explain({ state, reason }: RolloutDevice): string {
  const because = reason ? ` (${reason})` : '';
  switch (state) {
    case State.STATE_FAILED: return `FAILED${reason ? `: ${reason}` : ''}; it keeps its last good spec`;
    // The coordinator's reason says the rest.
    case State.STATE_OFFLINE: return `OFFLINE: ${reason || 'it gets the change when it comes back'}`;
    case State.STATE_SUPERSEDED: return `SUPERSEDED by a newer change${because}`;
    case State.STATE_PENDING:
    case State.STATE_APPLYING: return `${stateName(state)}: no answer in time${because}; look again with: moefleet devices show`;
    default: return `${stateName(state)}${because}`;
  }
}

function sorted(devices: readonly RolloutDevice[]): RolloutDevice[] {
  return [...devices].sort((a, b) => (a.deviceId < b.deviceId ? -1 : a.deviceId > b.deviceId ? 1 : 0));
}
