/**
 * Where every miss that the engine counted has gone: exported, spooled, dropped, or part of a request that was not
 * sampled. A miss enters the account together with its place and then only moves, so
 * counted = exported + spooled + dropped + unsampled holds at every moment.
 *
 * Batches that an earlier boot left in the spool enter it too (`inherited` of `counted`), as their later loss would
 * otherwise go unseen; counted - inherited is what the engine of this boot counted.
 */
import type { MissAccountSnapshot } from '../engine-queue';

type Place = Exclude<keyof MissAccountSnapshot, 'counted'>;

export class MissAccount {
  private counted = 0;
  private inherited = 0;
  private readonly places: Record<Place, number> = { exported: 0, spooled: 0, dropped: 0, unsampled: 0 };

  /** `misses` not seen before. */
  enter(misses: number, place: Place): void {
    this.counted += misses;
    this.places[place] += misses;
  }

  /** `misses` found in the spool at start. */
  inherit(misses: number): void {
    this.inherited += misses;
    this.enter(misses, 'spooled');
  }

  /** Spooled misses that were sent or are lost. */
  settle(misses: number, place: 'exported' | 'dropped'): void {
    this.places.spooled -= misses;
    this.places[place] += misses;
  }

  get inheritedMisses(): number {
    return this.inherited;
  }

  snapshot(): MissAccountSnapshot {
    return { counted: this.counted, ...this.places };
  }
}
