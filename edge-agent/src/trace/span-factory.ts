/** Makes finished spans in the form that OpenTelemetry's serialiser takes. Nothing is kept: a span is a value here. */
import { type Attributes, type HrTime, type Link, type SpanContext, type SpanKind, type SpanStatus, SpanStatusCode, TraceFlags } from '@opentelemetry/api';
import { hrTimeDuration } from '@opentelemetry/core';
import { resourceFromAttributes } from '@opentelemetry/resources';
import type { ReadableSpan } from '@opentelemetry/sdk-trace-base';
import { RESOURCE } from './attribute-names';

/** Who the spans are from; the resource of every batch. */
export interface SpanOrigin {
  deviceId: string;
  bootId: string;
  hostName: string;
  version: string;
}

export interface SpanFields {
  name: string;
  kind: SpanKind;
  traceId: string;
  spanId: string;
  /** null for a root */
  parent: SpanContext | null;
  start: HrTime;
  end: HrTime;
  attributes: Attributes;
  links?: Link[];
  status?: SpanStatus;
}

export function spanContext(traceId: string, spanId: string, isRemote = false): SpanContext {
  return { traceId, spanId, traceFlags: TraceFlags.SAMPLED, isRemote };
}

export class SpanFactory {
  private readonly resource: ReadableSpan['resource'];
  private readonly scope: ReadableSpan['instrumentationScope'];

  constructor(origin: SpanOrigin) {
    this.resource = resourceFromAttributes({
      [RESOURCE.serviceName]: 'moefleet-agent',
      [RESOURCE.serviceVersion]: origin.version,
      [RESOURCE.serviceInstanceId]: origin.bootId,
      [RESOURCE.hostName]: origin.hostName,
      [RESOURCE.deviceId]: origin.deviceId,
    });
    this.scope = { name: 'moefleet', version: origin.version };
  }

  make(fields: SpanFields): ReadableSpan {
    const context = spanContext(fields.traceId, fields.spanId);
    return {
      name: fields.name,
      kind: fields.kind,
      spanContext: () => context,
      ...(fields.parent ? { parentSpanContext: fields.parent } : {}),
      startTime: fields.start,
      endTime: fields.end,
      duration: hrTimeDuration(fields.start, fields.end),
      ended: true,
      status: fields.status ?? { code: SpanStatusCode.UNSET },
      attributes: fields.attributes,
      links: fields.links ?? [],
      events: [],
      resource: this.resource,
      instrumentationScope: this.scope,
      droppedAttributesCount: 0,
      droppedEventsCount: 0,
      droppedLinksCount: 0,
    };
  }
}
