/**
 * Which experts each device uses (warm/device-use.ts), for the learner. Written by the session that has the device; kept for
 * a week after its last report. Some 30 KiB for 48 layers of 128 experts. A record that cannot be read is none.
 */
import { DeviceUse } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { inChunks } from './chunks';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

const KEEP_MS = 7 * 86_400_000;

export class UseStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger) {}

  /** `change` gets what is kept, null where nothing is, and returns what is to be kept; null: as it was. */
  async update(deviceId: string, change: (known: DeviceUse | null) => DeviceUse | null): Promise<void> {
    const next = change(await this.get(deviceId));
    if (!next) return;
    const key = this.keys.expertUse(deviceId);
    await this.link.run(key, (client) => client.set(key, Buffer.from(DeviceUse.encode(next).finish()), 'PX', KEEP_MS));
  }

  async get(deviceId: string): Promise<DeviceUse | null> {
    const key = this.keys.expertUse(deviceId);
    const found = await this.link.run(key, (client) => client.getBuffer(key));
    if (!found) return null;
    try {
      const use = DeviceUse.decode(found);
      if (use.deviceId !== deviceId) throw new TypeError(`it is of device "${use.deviceId}"`);
      return use;
    } catch (err) {
      this.log.warn({ key, err }, 'which experts a device uses cannot be read; it is counted anew');
      return null;
    }
  }

  async some(deviceIds: readonly string[]): Promise<DeviceUse[]> {
    return (await inChunks(deviceIds, (id) => this.get(id))).filter((one) => one !== null);
  }
}
