/**
 * What devices use of a model's experts, summed per workload (warm/warm-profile.ts). Bounded: per model four bytes for
 * each expert of each layer and workload, MOST_WORKLOADS of these, MOST_MODELS models; per device one small record, kept
 * for a day, which is what makes a report count once and no device more often than its turn comes.
 */
import { addContribution, aged, type Contribution, decodeProfile, emptyProfile, encodeProfile, type Shape, type WarmProfile } from '../warm/warm-profile';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export const MOST_WORKLOADS = 16;
export const MOST_MODELS = 32;
/** Where there is no room for a workload of its own. */
export const OTHER_WORKLOADS = 'other';
/** A model that devices run is written every few seconds. */
const MODEL_MAY_GO_MS = 3_600_000;
const KEEP_PROFILES_MS = 60 * 86_400_000;
const KEEP_RECORD_MS = 86_400_000;
const MOST_TRIES = 8;

export const USE_OUTCOMES = ['counted', 'duplicate', 'too soon'] as const;
export type UseOutcome = typeof USE_OUTCOMES[number];

export class WarmStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  /** Whether this report of the device counts; if so it never does again. */
  async admit(deviceId: string, bootId: string, sequence: bigint, nowMs: number, leastMs: number): Promise<UseOutcome> {
    return USE_OUTCOMES[Number(await this.link.script(LUA.admitUse, [this.keys.use(deviceId)], [bootId, sequence, nowMs, leastMs, KEEP_RECORD_MS]))]!;
  }

  /** Adds to the workload's profile. False where lists of so many other models are kept that there is no room. */
  async add(modelHash: string, workload: string, more: Contribution, nowMs: number): Promise<boolean> {
    const name = modelName(modelHash, more);
    const [entered, gone] = await this.link.script(LUA.enterWarmModel, [this.keys.warmModels], [name, nowMs, MOST_MODELS, MODEL_MAY_GO_MS]) as [number, Buffer?];
    if (Number(entered) !== 1) return false;
    if (gone && gone.length > 0) {
      const key = this.keys.warmProfiles(gone.toString());
      await this.link.run(key, (client) => client.del(key));
    }
    const key = this.keys.warmProfiles(name);
    let into = workload;
    for (let tries = 0; tries < MOST_TRIES; tries += 1) {
      const [revision, bytes] = await this.link.run(key, (client) => client.hmgetBuffer(key, `rev|${into}`, `use|${into}`));
      const profile = aged((bytes && decodeProfile(bytes, more)) || emptyProfile(more, nowMs), nowMs);
      addContribution(profile, more);
      const answer = Number(await this.link.script(LUA.putWarmProfile, [key], [into, Number(revision?.toString() ?? 0) || 0, encodeProfile(profile), into === OTHER_WORKLOADS ? MOST_WORKLOADS : MOST_WORKLOADS - 1, KEEP_PROFILES_MS]));
      if (answer === 1) return true;
      if (answer === -1) {
        if (into === OTHER_WORKLOADS) return false;
        into = OTHER_WORKLOADS;
      }
    }
    return false;
  }

  /** By workload; what is no profile is left out. */
  async profiles(modelHash: string, shape: Shape): Promise<Map<string, WarmProfile>> {
    const key = this.keys.warmProfiles(modelName(modelHash, shape));
    const fields = await this.link.run(key, (client) => client.hgetallBuffer(key));
    const profiles = new Map<string, WarmProfile>();
    for (const [field, bytes] of Object.entries(fields)) {
      const profile = field.startsWith('use|') ? decodeProfile(bytes, shape) : null;
      if (profile) profiles.set(field.slice('use|'.length), profile);
    }
    return profiles;
  }
}

/** A device that tells another shape of a model than the others do writes elsewhere. */
function modelName(modelHash: string, { layers, experts }: Shape): string {
  return `${modelHash}:${layers}x${experts}`;
}
