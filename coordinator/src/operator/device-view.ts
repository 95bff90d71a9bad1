/** How the registry's records are shown through the API. */
import { type Device, DeviceSpec, type Rollout, type RolloutDevice, RolloutDevice_State as DeviceState, Rollout_State as State } from '@moefleet/proto';
import { type DeviceRecord, generationOf, highestReported, specHash } from '../registry/device-record';
import { viewIdentity } from './identity-view';
import type { SharedPins } from '../registry/pin-store';
import type { RolloutRecord, RolloutRow, RolloutState, RowState } from '../registry/rollout-record';
import { specInputs } from '../rollout/desired-writer';
import { effectiveSpec } from '../rollout/effective-spec';
import { isHeld } from '../rollout/held';

const TRACE_ID = /^[0-9a-f]{32}$/;

/** Its spec is lost to the registry, and it keeps it; see rollout/held.ts. */
export function deviceHeld(device: DeviceRecord, shared: SharedPins): boolean {
  if (highestReported(device.reported) <= generationOf(device.desired)) return false;
  const spec = Buffer.from(DeviceSpec.encode(effectiveSpec(specInputs(device, shared)).spec).finish());
  return isHeld(device, specHash(spec), Boolean(shared.kill));
}

export function viewDevice(device: DeviceRecord, shared: SharedPins, jaegerUrl: string): Device {
  const { desired, reported } = device;
  const traceId = device.telemetry?.lastTrace?.traceIds[0] ?? '';
  return {
    id: device.id,
    online: device.lease !== null,
    lastSeenMs: BigInt(device.lastSeenMs),
    info: device.info,
    reported,
    desiredGeneration: generationOf(desired),
    desired: desired.t === 'set' ? desired.decoded : undefined,
    desiredHash: desired.t === 'set' ? Buffer.from(desired.hash, 'hex') : Buffer.alloc(0),
    drift: desired.t === 'set' && reported?.appliedHash.toString('hex') !== desired.hash,
    telemetry: device.telemetry,
    sources: effectiveSpec(specInputs(device, shared)).sources,
    traceUrl: jaegerUrl && TRACE_ID.test(traceId) ? `${jaegerUrl}/trace/${traceId}` : '',
    bootId: device.bootId,
    labels: { ...device.labels },
    operatorLabels: { ...device.operatorLabels },
    held: deviceHeld(device, shared),
    identity: device.identity ? viewIdentity(device.identity) : undefined,
  };
}

const ROLLOUT_STATES: Record<RolloutState, State> = { running: State.STATE_RUNNING, done: State.STATE_DONE, incomplete: State.STATE_INCOMPLETE };
const ROW_STATES: Record<RowState, DeviceState> = {
  pending: DeviceState.STATE_PENDING, applying: DeviceState.STATE_APPLYING, applied: DeviceState.STATE_APPLIED, failed: DeviceState.STATE_FAILED,
  offline: DeviceState.STATE_OFFLINE, unchanged: DeviceState.STATE_UNCHANGED, superseded: DeviceState.STATE_SUPERSEDED,
};

export function viewRollout(rollout: RolloutRecord): Rollout {
  return {
    id: rollout.id, what: rollout.what, origin: rollout.origin, createdMs: BigInt(rollout.createdMs),
    state: ROLLOUT_STATES[rollout.state], devices: rollout.rows.map(viewRow),
  };
}

function viewRow(row: RolloutRow): RolloutDevice {
  return { deviceId: row.deviceId, state: ROW_STATES[row.state], generation: BigInt(row.generation), reason: row.reason };
}
