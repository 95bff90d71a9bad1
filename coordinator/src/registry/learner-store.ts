/** The learner's data that belongs to no device: quality surfaces and what it is doing. */
import { QualitySurface } from '@moefleet/proto';
import { reasonOf, RegistryDataError } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

/** A learner that has died must not look busy for ever. */
const ACTIVITY_TTL_MS = 600_000;

export class LearnerStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  async getSurface(modelHash: string, textHash: string): Promise<QualitySurface | null> {
    const key = this.keys.surface(modelHash, textHash);
    const found = await this.link.run(key, (client) => client.getBuffer(key));
    if (!found) return null;
    try {
      const surface = QualitySurface.decode(found);
      if (surface.modelHash !== modelHash || surface.textHash !== textHash) throw new TypeError('it is of another model or text');
      return surface;
    } catch (error) {
      throw new RegistryDataError(key, `no quality surface: ${reasonOf(error)}`, error);
    }
  }

  async putSurface(surface: QualitySurface): Promise<void> {
    const key = this.keys.surface(surface.modelHash, surface.textHash);
    await this.link.run(key, (client) => client.set(key, Buffer.from(QualitySurface.encode(surface).finish())));
  }

  /** Empty: idle. */
  async setActivity(activity: string): Promise<void> {
    const key = this.keys.activity;
    await this.link.run<unknown>(key, (client) => (activity ? client.set(key, activity, 'PX', ACTIVITY_TTL_MS) : client.del(key)));
  }

  async activity(): Promise<string> {
    return await this.link.run(this.keys.activity, (client) => client.get(this.keys.activity)) ?? '';
  }
}
