/** What an operator may change, where, and how it is told. */
import { parseSelector, printSelector, type Selector } from '@moefleet/runtime';
import type { AuditSubject } from '../registry/audit-store';
import type { EvictionPolicy, ModelChoice, PinField, PinPlace, RoutingChoice } from '../registry/pin';

export type Target =
  | { t: 'all' }
  | { t: 'device'; deviceId: string }
  | { t: 'selector'; selector: Selector };

/** `expiresMs`: when the pin that it sets ends by itself; absent: it stays. */
export type Change = ChangeOfField & { readonly expiresMs?: number };

type ChangeOfField =
  | { t: 'setRouting'; routing: RoutingChoice }
  | { t: 'clearRouting' }
  | { t: 'setEviction'; policy: EvictionPolicy; halfLifeTokens: number | null }
  | { t: 'clearEviction' }
  | { t: 'setCacheBytes'; cacheBytes: number }
  | { t: 'setCapacity'; capacity: number }
  | { t: 'clearCache' }
  | { t: 'setTracing'; traceRatio: number }
  | { t: 'setAgent'; version: string; allowDowngrade: boolean }
  | { t: 'clearAgent' }
  | { t: 'setModel'; model: ModelChoice }
  | { t: 'clearModel' }
  | { t: 'setSampling'; sampling: { windowTokens: number; bytesPerHour: number; bytesPerDay?: number } | null };

export function pinPlace(target: Target): PinPlace {
  if (target.t === 'all') return { t: 'fleet' };
  return target.t === 'device' ? { t: 'device', deviceId: target.deviceId } : { t: 'group', selector: printSelector(target.selector) };
}

export function pinField(change: Change): PinField {
  switch (change.t) {
    case 'setRouting': case 'clearRouting': return 'lambda';
    case 'setEviction': case 'clearEviction': return 'eviction';
    case 'setCacheBytes': case 'setCapacity': case 'clearCache': return 'cache';
    case 'setTracing': return 'tracing';
    case 'setSampling': return 'sampling';
    case 'setAgent': case 'clearAgent': return 'agent';
    case 'setModel': case 'clearModel': return 'model';
  }
}

export function targetOf(place: PinPlace): Target {
  if (place.t === 'device') return { t: 'device', deviceId: place.deviceId };
  return place.t === 'group' ? { t: 'selector', selector: parseSelector(place.selector) } : { t: 'all' };
}

/** Whom a change of this target is about, in the audit log. */
export function auditSubject(target: Target): AuditSubject {
  const place = pinPlace(target);
  if (place.t === 'fleet') return { t: 'all' };
  return place.t === 'device' ? { t: 'devices', ids: [place.deviceId] } : { t: 'selector', selector: place.selector };
}

/** DeviceSpec field names a change is about, for finding out which layer has won. */
export function specFields(change: Change): readonly string[] {
  const fields: Record<PinField, readonly string[]> = {
    lambda: ['lambda'], eviction: ['eviction'], cache: ['capacities', 'cache_bytes'], tracing: ['trace_ratio'], sampling: ['router_sampling'], agent: ['agent'], model: ['model'],
  };
  return fields[pinField(change)];
}

export function describeChange(change: Change, target: Target): string {
  const what = describeValue(change, describeTarget(target));
  return change.expiresMs === undefined ? what : `${what} until ${new Date(change.expiresMs).toISOString()}`;
}

export function describeTarget(target: Target): string {
  return target.t === 'all' ? 'all devices' : target.t === 'device' ? `device ${target.deviceId}` : `devices with ${printSelector(target.selector)}`;
}

/** The same for a change that is planned and then made, whenever it ends. */
export function describeValue(change: Change, where: string): string {
  switch (change.t) {
    case 'setRouting': return `${routingText(change.routing)} on ${where}`;
    case 'clearRouting': return `routing back to the learner on ${where}`;
    case 'setEviction': return `eviction ${change.policy}${change.halfLifeTokens ? `, half-life ${change.halfLifeTokens} tokens` : ''} on ${where}`;
    case 'clearEviction': return `eviction back to the agents' default on ${where}`;
    case 'setCacheBytes': return `cache of ${change.cacheBytes} bytes on ${where}`;
    case 'setCapacity': return `capacity ${change.capacity} in every layer on ${where}`;
    case 'clearCache': return `cache size back to the learner on ${where}`;
    case 'setTracing': return `trace ratio ${change.traceRatio} on ${where}`;
    case 'setAgent': return `agent release ${change.version}${change.allowDowngrade ? ', downgrade allowed,' : ''} on ${where}`;
    case 'clearAgent': return `agent release back to the installed one on ${where}`;
    case 'setModel': return `model ${modelText(change.model)} on ${where}`;
    case 'clearModel': return `model back to the one each was set up with on ${where}`;
    case 'setSampling': return `router sampling ${change.sampling ? 'on' : 'off'} on ${where}`;
  }
}

function modelText({ name, manifestSha256, bytesPerSecond, quietHours }: ModelChoice): string {
  return [`${name} (${manifestSha256.slice(0, 12)})`, bytesPerSecond === undefined ? '' : `at most ${bytesPerSecond} bytes/s`, quietHours && `not in ${quietHours}`].filter(Boolean).join(', ');
}

function routingText(routing: RoutingChoice): string {
  const method = routing.method ?? 'cache_prior';
  const parts = [
    method === 'cache_prior' ? `lambda ${routing.lambdas ? routing.lambdas.join(',') : routing.lambda}` : `routing ${method}`,
    routing.maxRank === undefined ? '' : `max rank ${routing.maxRank}`,
    routing.massThreshold === undefined ? '' : `mass threshold ${routing.massThreshold}`,
    routing.topJs ? `topJ ${routing.topJs.join(',')}` : routing.topJ === null ? '' : `topJ ${routing.topJ}`,
    routing.firstBiasedLayer ? `from layer ${routing.firstBiasedLayer}` : '',
    routing.biasPrefill ? 'prompts included' : '',
  ];
  return parts.filter(Boolean).join(', ');
}
