/** What one field's part of a spec says, in a few words. */
import { type DeviceSpec, Eviction, Routing, routingText } from '@moefleet/proto';
import type { PinField } from '../registry/pin';

export function specText(spec: DeviceSpec | undefined, field: PinField): string {
  if (!spec) return 'default';
  switch (field) {
    case 'lambda': return spec.routing === Routing.ROUTING_UNSPECIFIED && spec.lambda === undefined ? 'λ 0 (default)' : routingText(spec);
    case 'eviction': return spec.eviction === Eviction.EVICTION_UNSPECIFIED ? 'default' : (Eviction[spec.eviction] ?? '').replace('EVICTION_', '').toLowerCase();
    case 'cache': return spec.cache === undefined ? 'default' : spec.cache.$case === 'cacheBytes' ? `${spec.cache.value} bytes` : `capacity ${[...new Set(spec.cache.value.experts)].join(',')}`;
    case 'tracing': return spec.traceRatio === undefined ? 'default' : String(spec.traceRatio);
    case 'agent': return spec.agent?.version ?? 'as installed';
    case 'model': return spec.model ? `${spec.model.name} (${spec.model.manifestSha256.slice(0, 12)})` : 'as set up';
    case 'sampling': return spec.routerSampling ? `${spec.routerSampling.windowTokens} tokens` : 'off';
  }
}
