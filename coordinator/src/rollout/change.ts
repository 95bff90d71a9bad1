/** What an operator may change, where, and how it is told. */
import type { PinField, PinPlace } from '../registry/pin';
import { selectorText } from '../names';

export type Target =
  | { t: 'all' }
  | { t: 'device'; deviceId: string }
  | { t: 'selector'; labels: Readonly<Record<string, string>> };

export type Change =
  | { t: 'setLambda'; lambda: number; topJ: number | null }
  | { t: 'clearLambda' }
  | { t: 'setCacheBytes'; cacheBytes: number }
  | { t: 'setCapacity'; capacity: number }
  | { t: 'clearCache' }
  | { t: 'setTracing'; traceRatio: number }
  | { t: 'setSampling'; sampling: { windowTokens: number; bytesPerHour: number } | null };

export function pinPlace(target: Target): PinPlace {
  if (target.t === 'all') return { t: 'fleet' };
  return target.t === 'device' ? { t: 'device', deviceId: target.deviceId } : { t: 'group', selector: selectorText(target.labels) };
}

export function pinField(change: Change): PinField {
  switch (change.t) {
    case 'setLambda': case 'clearLambda': return 'lambda';
    case 'setCacheBytes': case 'setCapacity': case 'clearCache': return 'cache';
    case 'setTracing': return 'tracing';
    case 'setSampling': return 'sampling';
  }
}

/** DeviceSpec field names a change is about, for finding out which layer has won. */
export function specFields(change: Change): readonly string[] {
  const fields: Record<PinField, readonly string[]> = {
    lambda: ['lambda'], cache: ['capacities', 'cache_bytes'], tracing: ['trace_ratio'], sampling: ['router_sampling'],
  };
  return fields[pinField(change)];
}

export function describeChange(change: Change, target: Target): string {
  const where = target.t === 'all' ? 'all devices' : target.t === 'device' ? `device ${target.deviceId}` : `devices with ${selectorText(target.labels)}`;
  switch (change.t) {
    case 'setLambda': return `lambda ${change.lambda}${change.topJ === null ? '' : `, topJ ${change.topJ}`} on ${where}`;
    case 'clearLambda': return `lambda back to the learner on ${where}`;
    case 'setCacheBytes': return `cache of ${change.cacheBytes} bytes on ${where}`;
    case 'setCapacity': return `capacity ${change.capacity} in every layer on ${where}`;
    case 'clearCache': return `cache size back to the learner on ${where}`;
    case 'setTracing': return `trace ratio ${change.traceRatio} on ${where}`;
    case 'setSampling': return `router sampling ${change.sampling ? 'on' : 'off'} on ${where}`;
  }
}
