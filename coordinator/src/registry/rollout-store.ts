/** Rollouts in Redis: the latest ones, as JSON, so that any coordinator can tell about them. */
import { RegistryDataError, reasonOf } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { decodeRollout, type RolloutRecord } from './rollout-record';
import { LUA } from './scripts';

/** Older rollouts are forgotten. */
const MOST_ROLLOUTS = 200;

export class RolloutStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly most = MOST_ROLLOUTS) {}

  async put(rollout: RolloutRecord): Promise<void> {
    await this.link.script(LUA.putRollout, [this.keys.rollouts, this.keys.rollout(rollout.id)],
      [rollout.id, JSON.stringify(rollout), rollout.createdMs, this.most, this.keys.rollout('')]);
  }

  /** null where none is known (any more). */
  async get(id: string): Promise<RolloutRecord | null> {
    const key = this.keys.rollout(id);
    const json = await this.link.run(key, (client) => client.get(key));
    if (json === null) return null;
    try {
      return decodeRollout(json);
    } catch (error) {
      throw new RegistryDataError(key, `no rollout: ${reasonOf(error)}`, error);
    }
  }
}
