/** What one field's part of a spec says, in a few words. */
import { type DeviceSpec, Eviction, Routing } from '@moefleet/proto';
import type { PinField } from '../registry/pin';

export function specText(spec: DeviceSpec | undefined, field: PinField): string {
  if (!spec) return 'default';
  switch (field) {
    case 'lambda': return routingText(spec);
    case 'eviction': return spec.eviction === Eviction.EVICTION_UNSPECIFIED ? 'default' : (Eviction[spec.eviction] ?? '').replace('EVICTION_', '').toLowerCase();
    case 'cache': return spec.cache === undefined ? 'default' : spec.cache.$case === 'cacheBytes' ? `${spec.cache.value} bytes` : `capacity ${[...new Set(spec.cache.value.experts)].join(',')}`;
    case 'tracing': return spec.traceRatio === undefined ? 'default' : String(spec.traceRatio);
    case 'agent': return spec.agent?.version ?? 'as installed';
    case 'model': return spec.model ? `${spec.model.name} (${spec.model.manifestSha256.slice(0, 12)})` : 'as set up';
    case 'sampling': return spec.routerSampling ? `${spec.routerSampling.windowTokens} tokens` : 'off';
  }
}

function routingText({ routing, lambda, lambdas, topJ, topJs, maxRank, massThreshold }: DeviceSpec): string {
  if (routing === Routing.ROUTING_UNSPECIFIED && lambda === undefined) return 'λ 0 (default)';
  const method = (Routing[routing] ?? '').replace('ROUTING_', '').toLowerCase();
  const bend = routing === Routing.ROUTING_CACHE_PRIOR || routing === Routing.ROUTING_UNSPECIFIED ? `λ ${lambdas.length > 0 ? lambdas.join(',') : lambda ?? 0}` : [method, maxRank ?? massThreshold].filter((part) => part !== undefined).join(' ');
  const top = topJs.length > 0 ? topJs.join(',') : topJ;
  return top === undefined ? bend : `${bend}, topJ ${top}`;
}
