/** `moefleet devices list` and `show`: what the registry knows. `watch` is in devices-watch.ts. */
import type { Command } from 'commander';
import { type Device, type DeviceIdentity, type DeviceSpec, ModelState_Status, Routing, SpecState, type TelemetryFrame } from '@moefleet/proto';
import { formatSize } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { deviceJson, endText, evictionName, fetchOf, flashBytesPerToken, layerName, missRate, routingName, tokensPerSecond } from '../device-view';
import { enumName, jsonText } from '../json-text';
import { addOperatorGroup } from '../operator-command';
import { capacityText, fixed, labelsText, NONE, pairs, percent, table } from '../table';
import { readSelector, SELECTOR_HELP } from '../target';
import { killSwitchText } from './kill-switch';

export function addDevices(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'devices', 'what runs in the fleet', (devices, action) => {
    const list = devices.command('list', { isDefault: true })
      .description('one line per device (the default)')
      .option('--selector <labels>', SELECTOR_HELP)
      .addHelpText('after', `
Columns: λ, or the routing method that has none, and a model that is being fetched, are "desired > in force" where they differ, λ with the time after which its
pin ends; MISS and TOKENS/S are of all
decode since the agent's boot; DRIFT means that the device does not run what it should yet.

Examples:
  moefleet devices
  moefleet devices list --selector class=phone --json
  moefleet devices list --selector 'region in (eu,us),!canary'
`);
    addCommonOptions(list, { operator: true }).action(action(async ({ operator, json, out, options }) => {
      const selector = options['selector'];
      const [found, kill] = await Promise.all([operator.listDevices(selector === undefined ? undefined : readSelector(String(selector))), operator.killSwitch()]);
      if (json) out(jsonText({ killSwitch: kill?.off ? kill : null, devices: found.map(deviceJson) }));
      else out(killSwitchText(kill) + (found.length === 0 ? noDevices(selector) : listTable(found, Date.now())));
    }));

    const show = devices.command('show')
      .description('everything about one device: where each value comes from, what the device adjusted and why, its layers')
      .argument('<id>', 'device id')
      .addHelpText('after', '\nExample:\n  moefleet devices show phone-1\n');
    addCommonOptions(show, { operator: true }).action(action(async ({ operator, json, out, args }) => {
      const device = await operator.getDevice(args[0]!);
      out(json ? jsonText({ device: deviceJson(device) }) : deviceText(device, Date.now()));
    }));
  });
}

function noDevices(selector: unknown): string {
  return selector === undefined
    ? 'no devices yet; start one with: moefleet agent run --model FILE.gguf --id phone-1\n'
    : `no device matches ${String(selector)}; list all with: moefleet devices\n`;
}

export function listTable(devices: readonly Device[], nowMs: number): string {
  return table(
    ['ID', 'ONLINE', 'λ', 'CAPACITY', 'MISS', 'TOKENS/S', 'MODEL', 'DRIFT', 'SEEN'],
    devices.map((device) => [
      device.id,
      onlineText(device),
      `${lambdaText(device)}${endText(device.sources.find(({ field }) => field === 'lambda')?.expiresMs, nowMs)}`,
      capacityText(device.reported?.effective?.capacities ?? []),
      percent(missRate(device.telemetry)),
      fixed(tokensPerSecond(device.telemetry), 1),
      modelText(device),
      device.held ? 'held' : device.drift ? driftText(device) : 'no',
      device.online ? 'now' : ago(nowMs - Number(device.lastSeenMs)),
    ]),
    [4, 5],
  );
}

/** What keeps a device out, or makes it one too many, is told where people look first. */
export function onlineText({ online, identity }: Device): string {
  const marks = [...(identity?.revokedMs ? ['REVOKED'] : []), ...(identity?.clonedMs ? ['CLONED'] : [])];
  return [online ? 'yes' : 'no', ...marks].join(' ');
}

function identityText({ installId, keyHash, notAfterMs, revokedMs, revokedWhy, clonedMs, clones, releasedMs }: DeviceIdentity): string {
  const parts = [keyHash ? `installation ${installId}, key ${keyHash.slice(0, 16)}, certificate until ${new Date(Number(notAfterMs)).toISOString()}` : 'has not enrolled'];
  if (revokedMs) parts.push(`REVOKED${revokedWhy ? ` (${revokedWhy})` : ''}`);
  if (releasedMs) parts.push('its id is released');
  if (clonedMs) parts.push(`CLONED: seen on ${clones.map(({ hostname, peer }) => `${hostname} (${peer})`).join(' and ')}`);
  return parts.join('; ');
}

export function lambdaText(device: Device): string {
  const desired = device.desired && bendText(device.desired);
  const effective = device.reported?.effective && bendText(device.reported.effective);
  if (desired === undefined && effective === undefined) return NONE;
  if (desired === undefined || desired === effective) return effective!;
  return `${desired} > ${effective ?? NONE}`;
}

/** λ, or the method that bends without one. */
function bendText({ routing, lambda, lambdas }: Pick<DeviceSpec, 'routing' | 'lambda' | 'lambdas'>): string {
  if (routing === Routing.ROUTING_ORIGINAL) return '0';
  if (routing !== Routing.ROUTING_UNSPECIFIED && routing !== Routing.ROUTING_CACHE_PRIOR) return routingName(routing)!;
  return lambdas.length > 0 ? capacityText(lambdas) : String(lambda ?? 0);
}

export function driftText(device: Device): string {
  return device.reported?.state === SpecState.SPEC_STATE_FAILED ? 'failed' : 'yes';
}

function modelText(device: Device): string {
  const fetched = fetchOf(device);
  return fetched ? `${fetched.name} ${fetched.percent}%${fetched.fetch.waiting && ' (waits)'} > ${loadedText(device)}` : loadedText(device);
}

function loadedText(device: Device): string {
  const model = device.info?.model;
  if (!model) return NONE;
  if (model.status === ModelState_Status.STATUS_READY) return model.name || model.hash.slice(0, 12);
  return enumName(ModelState_Status, 'STATUS_', model.status).toLowerCase();
}

export function ago(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} days ago`;
}

function deviceText(device: Device, nowMs: number): string {
  return [
    pairs(identityRows(device, nowMs)),
    valuesText(device, nowMs),
    adjustmentsText(device),
    layersText(device),
  ].filter(Boolean).join('\n');
}

function identityRows(device: Device, nowMs: number): [string, string][] {
  const { info, reported, telemetry } = device;
  const model = info?.model;
  const rows: [string, string][] = [
    ['device', device.id],
    ...labelRows(device),
    ['online', device.online ? 'yes' : `no, last seen ${ago(nowMs - Number(device.lastSeenMs))}`],
    ['machine', info ? `${info.hostname || NONE}, ${info.os} ${info.arch}, ${formatSize(Number(info.memoryBytes))}, agent ${info.agentVersion}` : NONE],
    ['http', info?.httpUrl || NONE],
  ];
  if (model) {
    rows.push(['model', `${model.name || NONE} (${model.architecture}, ${model.moeLayers.length} MoE layers of ${model.experts} experts, top ${model.topK}) ${enumName(ModelState_Status, 'STATUS_', model.status).toLowerCase()}`]);
    rows.push(['model hash', model.hash || NONE]);
    if (model.message) rows.push(['model says', model.message]);
    if (model.hostCrashes > 0) rows.push(['engine crashes', `${model.hostCrashes} since boot`]);
  }
  const fetched = fetchOf(device);
  if (fetched) rows.push(['model fetch', fetchText(fetched)]);
  if (info?.limits) {
    rows.push(['own limits', `cache ${formatSize(Number(info.limits.maxCacheBytes))} (capacity ${capacityText(info.limits.maxCapacities)}), λ up to ${info.limits.maxLambda}`]);
  }
  rows.push(['desired', `generation ${device.desiredGeneration}${device.drift ? ', not in force yet' : ''}`]);
  if (reported) {
    const state = enumName(SpecState, 'SPEC_STATE_', reported.state);
    rows.push(['reported', `${state} generation ${reported.generation}, in force: ${reported.appliedGeneration}${reported.reason ? `: ${reported.reason}` : ''}`]);
  }
  if (telemetry) {
    rows.push(['decode', `${telemetry.decodeTokens} tokens, ${fixed(tokensPerSecond(telemetry), 1)} tokens/s, miss rate ${percent(missRate(telemetry))}`]);
    rows.push(['flash', `${formatSize(Number(telemetry.flashBytes))} in ${telemetry.flashReads} reads; ${sizeOrNone(flashBytesPerToken(telemetry))} per decoded token`]);
    rows.push(['requests', `${telemetry.requests}, failed ${telemetry.requestsFailed}`]);
    rows.push(['memory', `${formatSize(Number(telemetry.rssBytes))} resident, ${formatSize(Number(telemetry.memoryAvailableBytes))} available${shortageText(telemetry)}`]);
    const misses = telemetry.misses;
    if (misses) rows.push(['misses', `${misses.counted} = ${misses.exported} exported + ${misses.spooled} spooled + ${misses.dropped} dropped + ${misses.unsampled} unsampled`]);
  }
  if (device.identity) rows.push(['identity', identityText(device.identity)]);
  rows.push(['latest trace', device.traceUrl || NONE]);
  return rows;
}

function fetchText({ name, percent: share, fetch }: NonNullable<ReturnType<typeof fetchOf>>): string {
  const { bytesDone, bytesTotal, fromCoordinator, fromPeers, fromDisk, waiting } = fetch;
  const size = (bytes: bigint) => formatSize(Number(bytes));
  return `${name}: ${share}%, ${size(bytesDone)} of ${size(bytesTotal)}; ${size(fromCoordinator)} from the coordinator, ${size(fromPeers)} from devices beside it, ${size(fromDisk)} of earlier models${waiting && `; waits: ${waiting}`}`;
}

/** In force, then which of them an operator set and what of the device's own that hides. */
function labelRows({ labels, operatorLabels, info }: Device): [string, string][] {
  const reported = info?.labels ?? {};
  // A coordinator of an earlier release tells of reported ones alone.
  const inForce = Object.keys(labels).length > 0 ? labels : reported;
  const rows: [string, string][] = [['labels', labelsText(inForce)]];
  if (Object.keys(operatorLabels).length > 0) rows.push(['set by operators', labelsText(operatorLabels)]);
  const hidden = Object.fromEntries(Object.entries(reported).filter(([key, value]) => inForce[key] !== value));
  if (Object.keys(hidden).length > 0) rows.push(['reported, without effect', labelsText(hidden)]);
  return rows;
}

function shortageText({ cacheLimitBytes, cacheShrinks, pressureEvictions }: TelemetryFrame): string {
  if (cacheShrinks === 0n) return '';
  const now = cacheLimitBytes === undefined ? 'enough again' : `short, experts held to ${formatSize(Number(cacheLimitBytes))}`;
  return `; ${now}; gave way ${cacheShrinks} times, ${pressureEvictions} experts`;
}

function sizeOrNone(bytes: number | null): string {
  return bytes === null ? NONE : formatSize(Math.round(bytes));
}

/** Asked for, in force, and which layer it comes from. */
function valuesText(device: Device, nowMs: number): string {
  const { desired } = device;
  const effective = device.reported?.effective;
  const told = new Set<string>();
  const source = (...fields: string[]) => {
    const found = device.sources.find((one) => fields.includes(one.field));
    if (!found) return NONE;
    const layer = `${layerName(found.layer).toLowerCase().replace('_', ' ')}${endText(found.expiresMs, nowMs)}`;
    // The learner's reason is long, and the same for each of its values.
    if (!found.detail || told.has(found.detail)) return layer;
    told.add(found.detail);
    return `${layer}: ${found.detail}`;
  };
  const cache = desired?.cache?.$case === 'cacheBytes' ? formatSize(Number(desired.cache.value))
    : desired?.cache?.$case === 'capacities' ? `capacity ${capacityText(desired.cache.value.experts)}` : NONE;
  return table(['VALUE', 'DESIRED', 'IN FORCE', 'FROM'], [
    ['lambda', oneOrList(desired?.lambda, desired?.lambdas), oneOrList(effective?.lambda, effective?.lambdas), source('lambda')],
    ['top_j', oneOrList(desired?.topJ, desired?.topJs), oneOrList(effective?.topJ, effective?.topJs), source('top_j')],
    ['routing', desired ? routingText(desired) : NONE, effective ? routingText(effective) : NONE, source('routing')],
    ['eviction', desired ? evictionText(desired) : NONE, effective ? evictionText(effective) : NONE, source('eviction')],
    ['cache', cache, effective ? `capacity ${capacityText(effective.capacities)}, ${formatSize(Number(effective.cacheBytes))}` : NONE, source('capacities', 'cache_bytes')],
    ['trace_ratio', String(desired?.traceRatio ?? NONE), String(effective?.traceRatio ?? NONE), source('trace_ratio')],
    ['agent', desired?.agent?.version ?? NONE, device.info?.agentVersion || NONE, source('agent')],
    ['model', desired?.model ? `${desired.model.name} (${desired.model.manifestSha256.slice(0, 12)})` : NONE, storedText(device), source('model')],
    ['router_sampling', desired?.routerSampling ? `${desired.routerSampling.windowTokens} tokens, ${formatSize(Number(desired.routerSampling.bytesPerHour))}/h${desired.routerSampling.bytesPerDay === undefined ? '' : `, ${formatSize(Number(desired.routerSampling.bytesPerDay))}/day`}` : NONE, effective ? (effective.routerSampling ? 'on' : 'off') : NONE, source('router_sampling')],
  ]);
}

/** The store's model that is loaded; one that the device was set up with has no manifest. */
function storedText({ info, desired }: Device): string {
  const loaded = info?.model?.manifestSha256;
  return loaded ? `${desired?.model?.manifestSha256 === loaded ? desired.model.name : 'another'} (${loaded.slice(0, 12)})` : NONE;
}

function oneOrList(one: number | undefined, list: readonly number[] | undefined): string {
  return list && list.length > 0 ? list.join(',') : String(one ?? NONE);
}

/** The method with what it alone reads; a spec and what is in force have the same fields. */
function routingText(spec: Pick<DeviceSpec, 'routing' | 'maxRank' | 'massThreshold' | 'firstBiasedLayer' | 'biasPrefill'>): string {
  const parts = [routingName(spec.routing) ?? NONE];
  if (spec.maxRank) parts.push(`max rank ${spec.maxRank}`);
  if (spec.massThreshold) parts.push(`mass ${spec.massThreshold}`);
  if (spec.firstBiasedLayer) parts.push(`from layer ${spec.firstBiasedLayer}`);
  if (spec.biasPrefill) parts.push('prompts included');
  return parts.join(', ');
}

function evictionText({ eviction, evictionHalfLifeTokens }: Pick<DeviceSpec, 'eviction' | 'evictionHalfLifeTokens'>): string {
  return `${evictionName(eviction) ?? NONE}${evictionHalfLifeTokens ? `, half-life ${evictionHalfLifeTokens} tokens` : ''}`;
}

function adjustmentsText(device: Device): string {
  const adjustments = device.reported?.adjustments ?? [];
  if (adjustments.length === 0) return '';
  return table(['ADJUSTED', 'ASKED', 'EFFECTIVE', 'WHY'], adjustments.map((one) => [one.field, one.asked, one.effective, one.reason]));
}

function layersText(device: Device): string {
  const layers = device.telemetry?.layers ?? [];
  if (layers.length === 0) return '';
  return table(['LAYER', 'CAPACITY', 'RESIDENT', 'HITS', 'MISSES', 'MISS', 'SWAPS', 'MASS LOST', 'RANGE'], layers.map((layer) => {
    const slots = Number(layer.hits + layer.misses);
    const events = Number(layer.events);
    return [
      String(layer.layer), String(layer.capacity), String(layer.resident), String(layer.hits), String(layer.misses),
      percent(slots ? Number(layer.misses) / slots : null), percent(slots ? Number(layer.swaps) / slots : null),
      fixed(events ? layer.massLost / events : null, 4), layer.rangeMean.toFixed(2),
    ];
  }), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}
