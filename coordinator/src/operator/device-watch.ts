/**
 * Tells one caller how devices change. Level-based: wake-ups name devices to read again, and what is read is told where it
 * differs from what was told last; a device that changes while the caller does not read is read once, when it does. So what
 * waits is a set of ids and never a message. Every so often some devices are read without a wake-up, as a lease that runs
 * out wakes nobody and wake-ups may be lost. Telemetry is no change: a stream of frames is not what an operator watches.
 */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Device, type WatchDevicesResponse } from '@moefleet/proto';
import { type Selector, selectorMatches } from '@moefleet/runtime';
import { isId } from '../names';
import type { Registry } from '../registry/registry';
import { viewDevice } from './device-view';

/** Read from Redis at once. */
const READ = 256;
/** Between two readings, so that wake-ups of many devices are told together and those of one device once. */
const PAUSE_MS = 100;
/** Read again that often without a wake-up, that many: a fleet of 10,000 is gone through in 40 s. */
const LOOK_EVERY_MS = 2000;
const LOOK_AT = 500;

export type Send = (message: WatchDevicesResponse) => Promise<void>;

export class DeviceWatch {
  /** Device ids → digest of what was told of them. */
  private readonly told = new Map<string, string>();
  private readonly stale = new Set<string>();
  private lookedAt = '';
  private wake: () => void = () => {};

  /** Empty `selector`: all devices. */
  constructor(private readonly registry: Registry, private readonly selector: Selector) {}

  /** Until `signal` is aborted, and then rejects. `send` resolves when there is room for the next message. */
  async run(send: Send, signal: AbortSignal): Promise<void> {
    const off = this.registry.events.on(({ kind, deviceId }) => {
      if (kind === 'measure' || kind === 'taken' || !isId(deviceId)) return;
      this.stale.add(deviceId);
      this.wake();
    });
    try {
      for (const id of await this.registry.devices.ids()) this.stale.add(id);
      await this.tellStale(send, signal);
      await send({ event: { $case: 'present', value: this.told.size } });
      for (let lookMs = Date.now() + LOOK_EVERY_MS; ;) {
        await sleep(PAUSE_MS, undefined, { signal });
        await this.untilStale(lookMs, signal);
        if (Date.now() >= lookMs) {
          await this.lookAtSome();
          lookMs = Date.now() + LOOK_EVERY_MS;
        }
        await this.tellStale(send, signal);
      }
    } finally {
      off();
    }
  }

  /** At the latest at `lookMs`, or when the caller goes. */
  private async untilStale(lookMs: number, signal: AbortSignal): Promise<void> {
    if (this.stale.size > 0) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.wake(), Math.max(0, lookMs - Date.now()));
      this.wake = () => {
        clearTimeout(timer);
        signal.removeEventListener('abort', this.wake);
        this.wake = () => {};
        resolve();
      };
      signal.addEventListener('abort', this.wake);
    });
  }

  /** The next in turn, those that have gone from the registry included. */
  private async lookAtSome(): Promise<void> {
    const ids = [...new Set([...await this.registry.devices.ids(), ...this.told.keys()])].sort();
    const next = ids.filter((id) => id > this.lookedAt).slice(0, LOOK_AT);
    for (const id of next) this.stale.add(id);
    this.lookedAt = next.length < LOOK_AT ? '' : next.at(-1)!;
  }

  /** Those that are stale now; what becomes so meanwhile is the next round's. */
  private async tellStale(send: Send, signal: AbortSignal): Promise<void> {
    const all = [...this.stale].sort();
    this.stale.clear();
    for (let at = 0; at < all.length; at += READ) {
      signal.throwIfAborted();
      const ids = all.slice(at, at + READ);
      const [records, shared] = await Promise.all([this.registry.devices.readSomeWithoutTelemetry(ids), this.registry.pins.shared()]);
      const found = new Map(records.filter((record) => selectorMatches(this.selector, record.labels)).map((record) => [record.id, record]));
      for (const id of ids) {
        const record = found.get(id);
        if (record) await this.tell(viewDevice(record, shared, ''), send);
        else if (this.told.delete(id)) await send({ event: { $case: 'gone', value: id } });
      }
    }
  }

  private async tell(device: Device, send: Send): Promise<void> {
    const digest = createHash('sha1').update(Device.encode({ ...device, lastSeenMs: 0n }).finish()).digest('base64');
    if (this.told.get(device.id) === digest) return;
    this.told.set(device.id, digest);
    await send({ event: { $case: 'device', value: device } });
  }
}
