/** Staged rollouts in Redis: written by compare-and-set on their revision, so that of two who act on one only one wins. */
import type { Logger } from '@moefleet/runtime';
import { reasonOf, RegistryDataError } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';
import { decodeStagedRollout, decodeStagedRow, isOver, type StagedRollout, type StagedRow } from './staged-rollout';

/** Older ones that have ended are forgotten. */
const MOST_STAGED = 200;

export class StagedRolloutStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger) {}

  /** Writes the record and those rows; `rollout.revision` is the one that was read. false: someone else has written since. */
  async write(rollout: StagedRollout, rows: readonly StagedRow[]): Promise<StagedRollout | null> {
    const next = { ...rollout, revision: rollout.revision + 1, updatedMs: Date.now() };
    const written = await this.link.script(LUA.writeStagedRollout,
      [this.keys.stagedRollouts, this.keys.activeRollouts, this.keys.stagedRollout(rollout.id), this.keys.stagedRows(rollout.id)],
      [rollout.id, rollout.revision, next.revision, JSON.stringify(next), next.createdMs, isOver(next) ? 0 : 1, MOST_STAGED, this.keys.stagedRollout(''),
        ...rows.flatMap((row) => [row.deviceId, JSON.stringify(row)])]);
    return Number(written) === 1 ? next : null;
  }

  /** null for an unknown id. */
  async read(id: string): Promise<StagedRollout | null> {
    const key = this.keys.stagedRollout(id);
    const json = await this.link.run(key, (client) => client.hget(key, 'record'));
    if (json === null) return null;
    try {
      return decodeStagedRollout(json);
    } catch (error) {
      throw new RegistryDataError(key, `no rollout: ${reasonOf(error)}`, error);
    }
  }

  /** By device id; a row that cannot be decoded is left out and logged. */
  async rows(id: string): Promise<StagedRow[]> {
    const key = this.keys.stagedRows(id);
    const found = await this.link.run(key, (client) => client.hgetall(key));
    return Object.entries(found).sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([deviceId, json]) => {
      try {
        return [decodeStagedRow(json)];
      } catch (err) {
        this.log.error({ key, deviceId, err }, 'row of a rollout cannot be decoded; left out');
        return [];
      }
    });
  }

  /** Newest first. */
  async list(): Promise<StagedRollout[]> {
    const ids = await this.link.run(this.keys.stagedRollouts, (client) => client.zrevrange(this.keys.stagedRollouts, 0, -1));
    const found = await Promise.all(ids.map((id) => this.read(id).catch((err: unknown) => {
      if (!(err instanceof RegistryDataError)) throw err;
      this.log.error({ err }, 'rollout cannot be decoded; left out');
      return null;
    })));
    return found.filter((rollout) => rollout !== null);
  }

  /** Ids of those that have not ended. */
  active(): Promise<string[]> {
    return this.link.run(this.keys.activeRollouts, (client) => client.smembers(this.keys.activeRollouts));
  }
}
