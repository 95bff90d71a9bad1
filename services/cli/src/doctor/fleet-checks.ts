/** What the coordinator's registry says of devices and coordinators: who is missing, who is slow, and why. Pure functions. */
import { type Coordinator, type Device, ModelState_Status, SpecState } from '@moefleet/proto';
import { formatDuration, formatSize, VERSION } from '@moefleet/runtime';
import { fetchOf } from '../device-view';
import { type Check, Checks } from './check';

const DAY_MS = 24 * 3_600_000;
/** Work that stands still for flash half of its time is bound by flash. */
const MUCH_STALL = 0.5;
/** Below it the first misses of a cold cache are what shows. */
const FEW_TOKENS = 64n;
/** As the agent's own default: tasks that stand still for memory this share of the time. */
const MUCH_PRESSURE_PERCENT = 10;

/** `ownVersion`: of what looks, which is what devices and coordinators are held against. */
export function checkDeviceRecord(device: Device, nowMs: number, ownVersion = VERSION): Check[] {
  const { id, info, reported, telemetry, identity } = device;
  const checks = new Checks(id);
  if (device.online) checks.add('ok', 'connection', 'online');
  else {
    checks.add('broken', 'connection', `offline, last seen ${device.lastSeenMs ? `${formatDuration(Math.max(0, nowMs - Number(device.lastSeenMs)))} ago` : 'never'}`,
      'is it switched on? on the device: systemctl status moefleet-agent; from here: moefleet doctor --ssh user@host');
  }
  if (identity?.revokedMs) checks.add('broken', 'identity', `revoked${identity.revokedWhy && ` (${identity.revokedWhy})`}`, `moefleet device unrevoke ${id}`);
  if (identity?.clonedMs) checks.add('broken', 'identity', `runs twice: ${identity.clones.map(({ hostname, peer }) => `${hostname} (${peer})`).join(' and ')}`, `stop one of the two, then: moefleet device clear-clone ${id}`);
  if (identity?.notAfterMs) {
    const leftMs = Number(identity.notAfterMs) - nowMs;
    if (leftMs <= 0) checks.add('broken', 'certificate', `expired ${formatDuration(-leftMs)} ago`, 'it gets another by itself when it is back within the coordinator\'s --reenrol-days; after that deploy it again');
    else if (leftMs < DAY_MS) checks.add(device.online ? 'slow' : 'note', 'certificate', `runs out in ${formatDuration(leftMs)} and was not renewed`, 'see the agent\'s log for why');
    else checks.add('ok', 'certificate', `until ${new Date(Number(identity.notAfterMs)).toISOString()}`);
  }
  const model = info?.model;
  if (model?.status === ModelState_Status.STATUS_FAILED) checks.add('broken', 'model', model.message || 'failed', 'put a good model file there (moefleet deploy ssh … --model FILE), see moefleet devices show');
  else if (model?.status === ModelState_Status.STATUS_READY) checks.add('ok', 'model', model.name);
  if (info?.modelFetch) {
    const { name, percent, fetch } = fetchOf(device)!;
    checks.add('note', 'model fetch', `${name}: ${percent}%${fetch.waiting && `, waits: ${fetch.waiting}`}`, fetch.waiting ? `moefleet devices show ${id}; its bounds: moefleet config explain ${id}` : '');
  }
  if (model && model.hostCrashes > 0) checks.add('slow', 'engine', `ended unasked ${model.hostCrashes} times; the last time: ${model.message || 'no reason told'}`, 'less cache (--cache) where memory ran out; else see the agent\'s log');
  if (reported?.state === SpecState.SPEC_STATE_FAILED) checks.add('broken', 'spec', `generation ${device.desiredGeneration} is refused: ${reported.reason}`, `moefleet config explain ${id}`);
  else if (device.held) checks.add('broken', 'spec', 'held: the registry has lost what it runs', 'set again what is missing, then: moefleet fleet accept-restore');
  else if (device.online && device.drift) checks.add('slow', 'spec', 'does not run yet what it shall', `moefleet config explain ${id}`);
  if (info && info.agentVersion !== '' && info.agentVersion !== ownVersion) checks.add('note', 'version', `agent ${info.agentVersion}, here is ${ownVersion}`, 'moefleet deploy ssh … puts the bundle there that is here');
  if (telemetry) checkTelemetry(checks, device, telemetry);
  return checks.all;
}

function checkTelemetry(checks: Checks, { id }: Device, telemetry: NonNullable<Device['telemetry']>): void {
  if (telemetry.cacheLimitBytes !== undefined) {
    checks.add('slow', 'memory', `short: experts are held to ${formatSize(Number(telemetry.cacheLimitBytes))}`, 'stop what else takes memory there, or give the agent less: moefleet cache set SIZE');
  } else if ((telemetry.memoryPressurePercent ?? 0) >= MUCH_PRESSURE_PERCENT) {
    checks.add('slow', 'memory', `tasks stand still for memory ${telemetry.memoryPressurePercent!.toFixed(0)}% of the time`, 'stop what else takes memory there');
  }
  // Prompts and decoding together, as the stall is counted.
  const workNs = Number(telemetry.prefillNs + telemetry.decodeNs);
  const stalled = workNs > 0 && telemetry.decodeTokens >= FEW_TOKENS ? Number(telemetry.stallNs) / workNs : 0;
  if (stalled >= MUCH_STALL) checks.add('slow', 'flash', `the engine waits for it ${(stalled * 100).toFixed(0)}% of the time`, `pull harder or hold more: moefleet lambda set 0.2 --device ${id}; moefleet cache set SIZE --device ${id}`);
  const { misses } = telemetry;
  if (misses && misses.dropped > 0n) checks.add('note', 'traces', `${misses.dropped} spans of misses were dropped`, 'is the collector (--otlp-endpoint) up? else a larger --spool-bytes, or moefleet tracing set 0.1');
  if (telemetry.requestsFailed > 0n) checks.add('note', 'requests', `${telemetry.requestsFailed} of ${telemetry.requests} failed since it started`, `moefleet trace ${id}`);
}

export function checkCoordinators(coordinators: readonly Coordinator[], nowMs: number, ownVersion = VERSION): Check[] {
  return coordinators.flatMap(({ coordinatorId, version, streams, framesShed, stopping, sinceMs }) => {
    const checks = new Checks(`coordinator ${coordinatorId}`);
    checks.add('ok', 'alive', `${streams} devices, for ${formatDuration(Math.max(0, nowMs - Number(sinceMs)))}${stopping ? ', stopping' : ''}`);
    if (version !== ownVersion) checks.add('note', 'version', `${version}, here is ${ownVersion}`, 'run the same release everywhere; two releases apart still understand each other');
    if (framesShed > 0n) checks.add('slow', 'telemetry', `${framesShed} frames were not counted for want of time; later ones make up for them`, 'another coordinator behind the balancer, or a longer --telemetry-interval');
    return checks.all;
  });
}
