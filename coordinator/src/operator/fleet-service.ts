/** The fleet as a whole: what was counted, who is there. */
import { type Coordinator, type FleetServiceServer, type GetFleetStatusResponse, NamedTotals } from '@moefleet/proto';
import { InvalidRequestError, NotFoundError } from '../errors';
import { checkId } from '../names';
import type { AuditInput } from '../registry/audit-store';
import type { CoordinatorRecord } from '../registry/coordinator-store';
import type { DeviceRecord } from '../registry/device-record';
import { type FleetSums, HISTORY_STEP_MS, type HistoryPoint, type Totals } from '../registry/telemetry-store';
import { unary } from './call-handler';
import { deviceHeld } from './device-view';
import type { OperatorDeps } from './operator-service';

/** Rates are of the last minute, without the step that is not over yet. */
const RATE_STEPS = 6;
const MOST_WHY = 500;

export function fleetService({ registry, rollouts, log }: Pick<OperatorDeps, 'registry' | 'rollouts' | 'log'>): FleetServiceServer {
  return {
    getFleetStatus: unary(log, async () => {
      const [devices, shared, sums, coordinators] = await Promise.all([registry.devices.readAll(), registry.pins.shared(), registry.telemetry.sums(), registry.coordinators.all()]);
      const devicesHeld = devices.filter((device) => deviceHeld(device, shared)).length;
      return { ...viewStatus(devices, sums, coordinators, registry.link.url, Date.now()), devicesHeld };
    }),
    getDeviceHistory: unary(log, async ({ deviceId }) => {
      if (!await registry.devices.read(checkId('device_id', deviceId))) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
      return { stepMs: HISTORY_STEP_MS, points: (await registry.telemetry.history(deviceId)).map((point) => ({ ...point, timeMs: BigInt(point.timeMs) })) };
    }),
    acceptRestore: unary(log, async ({ deviceId, why }, caller) => {
      if (why.length > MOST_WHY) throw new InvalidRequestError('why', `${why.length} characters`, `at most ${MOST_WHY}`);
      if (deviceId && !await registry.devices.read(checkId('device_id', deviceId))) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
      const ids = deviceId ? [deviceId] : await registry.devices.ids();
      const what = `accept what the registry holds after Redis lost data, on ${deviceId || 'all devices'}`;
      const entry: AuditInput = { who: caller.name, what, why, subject: deviceId ? { t: 'devices', ids } : { t: 'all' } };
      return { deviceIds: await registry.audit.around(entry, () => rollouts.acceptRestore(ids, `operator: ${what}${why ? ` (${why})` : ''}`)) };
    }),
    listCoordinators: unary(log, async () => ({ coordinators: (await registry.coordinators.all()).map(viewCoordinator) })),
  };
}

function viewStatus(devices: readonly DeviceRecord[], sums: FleetSums, coordinators: readonly CoordinatorRecord[], redisUrl: string, nowMs: number): Omit<GetFleetStatusResponse, 'devicesHeld'> {
  const online = devices.filter((device) => device.lease !== null).length;
  const { counted, duplicate, refused } = sums.frames;
  return {
    devicesOnline: online,
    devicesOffline: devices.length - online,
    devicesDrifting: devices.filter(({ desired, reported }) => desired.t === 'set' && reported?.appliedHash.toString('hex') !== desired.hash).length,
    ...rates(sums.recent, nowMs),
    totals: sums.all,
    byModel: named(sums.byModel),
    byClass: named(sums.byClass),
    frames: { counted, duplicate, refused, shed: BigInt(coordinators.reduce((sum, { framesShed }) => sum + framesShed, 0)), boots: sums.boots },
    coordinators: coordinators.map(viewCoordinator),
    redisUrl,
  };
}

function rates(recent: readonly HistoryPoint[], nowMs: number): { tokensPerSecond: number; missRate: number | undefined } {
  const end = Math.floor(nowMs / HISTORY_STEP_MS) * HISTORY_STEP_MS;
  const points = recent.filter(({ timeMs }) => timeMs < end && timeMs >= end - RATE_STEPS * HISTORY_STEP_MS);
  const sum = (field: 'decodeTokens' | 'hits' | 'misses') => points.reduce((total, point) => total + point[field], 0);
  const slots = sum('hits') + sum('misses');
  return { tokensPerSecond: sum('decodeTokens') / (RATE_STEPS * HISTORY_STEP_MS / 1000), missRate: slots > 0 ? sum('misses') / slots : undefined };
}

function named(totals: ReadonlyMap<string, Totals>): NamedTotals[] {
  return [...totals].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, each]) => ({ name, totals: each }));
}

function viewCoordinator({ id, sinceMs, framesShed, ...rest }: CoordinatorRecord): Coordinator {
  return { ...rest, coordinatorId: id, sinceMs: BigInt(sinceMs), framesShed: BigInt(framesShed) };
}
