/**
 * What a device is expected to miss, from what the texts miss at a setting and what it was seen to miss at those it ran; and how
 * sure that is. Answers differ, so that misses come in heaps: a count of them is as good as a tenth of it would be, did each
 * come by itself.
 */
import { AS_THE_TEXT, type OwnMisses, ownMisses } from '@moefleet/runtime';
import type { QualitySurface } from './quality-surface';
import type { Setting } from './setting';

/** What the device was seen to miss, to be compared with what the surface says of the setting it ran. */
export interface ObservedMisses { readonly setting: Setting; readonly slots: number; readonly misses: number }

export interface DeviceMisses extends OwnMisses {
  /** relative standard deviation of what it misses at a setting: at one that ran, and at any other */
  readonly sdSeen: number;
  readonly sdOther: number;
}

/** Counted misses for each that would come by itself, from single answers on the reference model. */
const HEAP = 10;
/** Misses that the texts' word is worth: a device of which nothing was seen is within two fifths of them. */
const TEXT_MISSES = 60;
/** One share does not hold quite the same at every setting. */
const OTHER_SETTING = 0.1;
/** Of the latest settings; what it did longer ago tells less of what it does now. */
const MOST_SLOTS = 50_000;

/** `observed`: oldest first. */
export function deviceMisses(surface: QualitySurface, observed: readonly ObservedMisses[]): DeviceMisses {
  let [slots, seen, said, roots] = [0, 0, 0, 0];
  for (const one of [...observed].reverse()) {
    const rates = one.slots > 0 ? surface.predict(one.setting)?.layerMissRates : undefined;
    if (!rates || slots >= MOST_SLOTS) continue;
    slots += one.slots;
    seen += one.misses;
    said += one.slots * mean(rates);
    roots += one.slots * mean(rates.map(Math.sqrt));
  }
  const counted = Math.max(seen, said);
  const own = slots > 0 ? ownMisses(seen, said, roots, counted / (counted + TEXT_MISSES)) : AS_THE_TEXT;
  const sdSeen = Math.sqrt(HEAP / (counted + TEXT_MISSES));
  return { ...own, sdSeen, sdOther: Math.hypot(sdSeen, OTHER_SETTING) };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
