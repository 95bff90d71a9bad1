/**
 * What a watch of devices knows, and what each message of the coordinator changes about it. A coordinator that is reached
 * again tells the present state from the start: what is as it was is then no news, and who is missing has gone.
 */
import type { Device, WatchDevicesResponse } from '@moefleet/proto';
import { deviceJson } from './device-view';
import type { JsonValue } from './json-text';

/** What may change about a device; `other`: something beside these. */
const FACETS = {
  online: ({ online }: Device) => online,
  desired: ({ desiredGeneration, desiredHash }: Device) => `${desiredGeneration} ${Buffer.from(desiredHash).toString('hex')}`,
  reported: (device: Device) => (deviceJson(device) as { reported: JsonValue }).reported,
  drift: ({ drift, held }: Device) => [drift, held],
  labels: ({ labels, operatorLabels }: Device) => [sorted(labels), sorted(operatorLabels)],
  model: ({ info }: Device) => [info?.model?.hash, info?.model?.status, info?.model?.hostCrashes],
} as const;
export type Facet = keyof typeof FACETS | 'other';

export type DeviceNews =
  | { event: 'present' | 'joined'; device: Device }
  | { event: 'changed'; changed: Facet[]; device: Device }
  | { event: 'gone'; deviceId: string }
  | { event: 'ready'; devices: number };

export interface WatchedDevice { device: Device; /** of the last change */ sinceMs: number }

export class WatchedDevices {
  readonly devices = new Map<string, WatchedDevice>();
  private seen = new Set<string>();
  private complete = false;
  private everComplete = false;

  constructor(private readonly nowMs: () => number = Date.now) {}

  /** A stream has begun: the present state follows. */
  begin(): void {
    this.seen = new Set();
    this.complete = false;
  }

  take({ event }: WatchDevicesResponse): DeviceNews[] {
    switch (event?.$case) {
      case 'device': return this.takeDevice(event.value);
      case 'gone': return this.forget(event.value);
      case 'present': return this.takePresent();
      case undefined: return [];
    }
  }

  private takeDevice(device: Device): DeviceNews[] {
    const before = this.devices.get(device.id)?.device;
    if (!this.complete) this.seen.add(device.id);
    const changed = before ? changedFacets(before, device) : [];
    if (before && changed.length === 0) return [];
    this.devices.set(device.id, { device, sinceMs: this.nowMs() });
    if (before) return [{ event: 'changed', changed, device }];
    return [{ event: this.everComplete ? 'joined' : 'present', device }];
  }

  private takePresent(): DeviceNews[] {
    const missing = [...this.devices.keys()].filter((id) => !this.seen.has(id));
    this.seen = new Set();
    this.complete = true;
    const first = !this.everComplete;
    this.everComplete = true;
    return [...missing.flatMap((id) => this.forget(id)), ...(first ? [{ event: 'ready', devices: this.devices.size } as const] : [])];
  }

  private forget(deviceId: string): DeviceNews[] {
    return this.devices.delete(deviceId) ? [{ event: 'gone', deviceId }] : [];
  }
}

function changedFacets(before: Device, after: Device): Facet[] {
  const changed = (Object.keys(FACETS) as (keyof typeof FACETS)[]).filter((facet) => text(FACETS[facet](before)) !== text(FACETS[facet](after)));
  if (changed.length > 0) return changed;
  const rest = (device: Device) => text(deviceJson({ ...device, lastSeenMs: 0n, telemetry: undefined, traceUrl: '', labels: {}, operatorLabels: {} }));
  return rest(before) === rest(after) ? [] : ['other'];
}

function sorted(labels: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1));
}

function text(value: unknown): string {
  return JSON.stringify(value) ?? '';
}
