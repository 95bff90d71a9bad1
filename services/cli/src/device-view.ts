/** A device as people and scripts see it: the registry's record, and the few figures that follow from it. */
import {
  type Device, type DeviceSpec, Eviction, type ModelFetch, ModelState_Status, Routing, SpecState, type TelemetryFrame, ValueSource_Layer,
} from '@moefleet/proto';
import { formatDuration } from '@moefleet/runtime';
import { enumName, type JsonValue, toJson } from './json-text';

/** Of the decode steps since the agent's boot, per selected slot; null before the first. */
export function missRate(telemetry: TelemetryFrame | undefined): number | null {
  let hits = 0n;
  let misses = 0n;
  for (const layer of telemetry?.layers ?? []) {
    hits += layer.hits;
    misses += layer.misses;
  }
  const slots = hits + misses;
  return slots === 0n ? null : Number(misses) / Number(slots);
}

/** Decode speed since the agent's boot; null before the first token. */
export function tokensPerSecond(telemetry: TelemetryFrame | undefined): number | null {
  if (!telemetry || telemetry.decodeNs === 0n) return null;
  return Number(telemetry.decodeTokens) / (Number(telemetry.decodeNs) / 1e9);
}

/** Flash bytes of prefill and decode together, per decoded token. */
export function flashBytesPerToken(telemetry: TelemetryFrame | undefined): number | null {
  if (!telemetry || telemetry.decodeTokens === 0n) return null;
  return Number(telemetry.flashBytes) / Number(telemetry.decodeTokens);
}

/** `cache_prior`, `original`, or null where none is set. */
export function routingName(routing: Routing): string | null {
  return routing === Routing.ROUTING_UNSPECIFIED ? null : enumName(Routing, 'ROUTING_', routing).toLowerCase();
}

/** `lru`, `lfu`, ..., or null where none is set. */
export function evictionName(eviction: Eviction): string | null {
  return eviction === Eviction.EVICTION_UNSPECIFIED ? null : enumName(Eviction, 'EVICTION_', eviction).toLowerCase();
}

export function layerName(layer: ValueSource_Layer): string {
  return enumName(ValueSource_Layer, 'LAYER_', layer);
}

/** The model that it fetches, as it is called in the store; null: it fetches none. */
export function fetchOf({ info, desired }: Device): { name: string; percent: number; fetch: ModelFetch } | null {
  const fetch = info?.modelFetch;
  if (!fetch) return null;
  const name = desired?.model?.manifestSha256 === fetch.manifestSha256 ? desired.model.name : fetch.manifestSha256.slice(0, 12);
  return { name, percent: fetch.bytesTotal > 0n ? Math.floor(Number(fetch.bytesDone) / Number(fetch.bytesTotal) * 100) : 0, fetch };
}

/** ` (ends in 1h 59m)`; empty for what stays. */
export function endText(expiresMs: bigint | undefined, nowMs: number): string {
  return expiresMs === undefined ? '' : ` (ends in ${formatDuration(Math.max(1000, Number(expiresMs) - nowMs))})`;
}

export function deviceJson(device: Device): JsonValue {
  const { info, reported } = device;
  return toJson({
    ...device,
    info: info && { ...info, modelFetch: info.modelFetch ?? null, model: info.model && { ...info.model, status: enumName(ModelState_Status, 'STATUS_', info.model.status) } },
    reported: reported && {
      ...reported,
      state: enumName(SpecState, 'SPEC_STATE_', reported.state),
      effective: reported.effective && { ...reported.effective, routing: routingName(reported.effective.routing), eviction: evictionName(reported.effective.eviction) },
    },
    desired: device.desired && specJson(device.desired),
    sources: device.sources.map((source) => ({ ...source, layer: layerName(source.layer), expiresMs: source.expiresMs ?? null })),
    telemetry: device.telemetry && {
      ...device.telemetry,
      memoryPressurePercent: device.telemetry.memoryPressurePercent ?? null,
      cacheLimitBytes: device.telemetry.cacheLimitBytes ?? null,
      lastTrace: device.telemetry.lastTrace ?? null,
    },
    missRate: missRate(device.telemetry),
    tokensPerSecond: tokensPerSecond(device.telemetry),
    flashBytesPerToken: flashBytesPerToken(device.telemetry),
  });
}

function specJson(spec: DeviceSpec) {
  return {
    lambda: spec.lambda ?? null,
    topJ: spec.topJ ?? null,
    routing: routingName(spec.routing),
    lambdas: spec.lambdas.length > 0 ? spec.lambdas : null,
    topJs: spec.topJs.length > 0 ? spec.topJs : null,
    maxRank: spec.maxRank ?? null,
    massThreshold: spec.massThreshold ?? null,
    firstBiasedLayer: spec.firstBiasedLayer ?? null,
    biasPrefill: spec.biasPrefill ?? null,
    eviction: evictionName(spec.eviction),
    evictionHalfLifeTokens: spec.evictionHalfLifeTokens ?? null,
    capacities: spec.cache?.$case === 'capacities' ? spec.cache.value.experts : null,
    cacheBytes: spec.cache?.$case === 'cacheBytes' ? spec.cache.value : null,
    modelHash: spec.modelHash,
    traceRatio: spec.traceRatio ?? null,
    routerSampling: spec.routerSampling ?? null,
    agent: spec.agent ?? null,
    model: spec.model ? { ...spec.model, bytesPerSecond: spec.model.bytesPerSecond ?? null } : null,
  };
}
