/**
 * How far a replayed miss rate may be from what a device would see.
 *
 * A replay is open-loop: a setting that bends the router changes what the layers compute and so what later routers say,
 * and the record knows only what they said when it was made. The more selections the setting changes, swapped or dropped,
 * the further the two may be apart. So the band is
 *
 *   +- (floor + slope x |share of slots that the setting changes - share that was changed when it was recorded|)
 *
 * with floor and slope from closed-loop runs (../calibration.json says which, and how they were made): half as wide again as
 * the narrowest band of this form that held every one of them. Scores at a byte each add what rounding was measured to do. Where nothing is
 * bent, neither now nor when it was recorded, and ids or exact scores are at hand, the replay is exact and has no band.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Trace } from './trace';
import { bendsNothing, type Setting } from './what-if';

export interface Calibration {
  /** in points of miss rate; `mostChanged`: the largest share among the runs */
  openLoop: { floorPoints: number; slopePoints: number; mostChanged: number };
  quantisation: { mostPoints: number };
}

// From src and from dist alike.
const CALIBRATION = JSON.parse(readFileSync(join(__dirname, '..', 'calibration.json'), 'utf8')) as Calibration;

/** Miss rates. */
export interface Band { low: number; high: number; }

/** Per slot. */
export interface Changed { swapRate: number; dropRate: number; }

/**
 * Null: exact. `recorded`: what a replay under the settings of the record's own time changes, null where they are not known;
 * `rates` as replayed.
 */
export function errorBand({ kind, bent }: Pick<Trace, 'kind' | 'bent'>, recorded: Changed | null, setting: Setting, rates: Changed & { missRate: number }, calibration = CALIBRATION): Band | null {
  const { floorPoints, slopePoints, mostChanged } = calibration.openLoop;
  const open = bent || !bendsNothing(setting);
  const rounding = kind === 'quantised scores' ? calibration.quantisation.mostPoints : 0;
  if (!open && rounding === 0) return null;
  // Not known: as if the record had been bent as much as any of the runs.
  const before = recorded ? recorded.swapRate + recorded.dropRate : mostChanged;
  const half = (rounding + (open ? floorPoints + slopePoints * Math.abs(rates.swapRate + rates.dropRate - before) : 0)) / 100;
  return { low: Math.max(0, rates.missRate - half), high: Math.min(1, rates.missRate + half) };
}
