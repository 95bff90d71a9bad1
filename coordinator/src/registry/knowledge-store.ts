/** What the learner knows of each device. A record that cannot be read is left out: the learner then begins anew with the device. */
import { DeviceKnowledge } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { inChunks } from './chunks';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

export class KnowledgeStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger) {}

  /** null where nothing is known. */
  async get(deviceId: string): Promise<DeviceKnowledge | null> {
    const key = this.keys.knowledge(deviceId);
    const found = await this.link.run(key, (client) => client.getBuffer(key));
    if (!found) return null;
    try {
      const knowledge = DeviceKnowledge.decode(found);
      if (knowledge.deviceId !== deviceId) throw new TypeError(`it is of device "${knowledge.deviceId}"`);
      return knowledge;
    } catch (err) {
      this.log.warn({ key, err }, 'what the learner knew of a device cannot be read; it begins anew');
      return null;
    }
  }

  async some(deviceIds: readonly string[]): Promise<DeviceKnowledge[]> {
    return (await inChunks(deviceIds, (id) => this.get(id))).filter((one) => one !== null);
  }

  async put(devices: readonly DeviceKnowledge[]): Promise<void> {
    await inChunks(devices, (knowledge) => {
      const key = this.keys.knowledge(knowledge.deviceId);
      return this.link.run(key, (client) => client.set(key, Buffer.from(DeviceKnowledge.encode(knowledge).finish())));
    });
  }
}
