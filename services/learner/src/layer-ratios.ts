/**
 * Which layers a class of devices misses more in than the texts do, from its hit counters per layer: what the bytes are
 * split by. A class whose routing has drifted from the texts' is planned anew, in steps of a quarter, so that a split does
 * not follow every frame.
 */
import type { DeviceKnowledge } from '@moefleet/proto';
import { outcomesOf } from './knowledge';
import type { ModelShape, QualitySurface } from './model';

/** Misses that the texts' shares are worth against those counted. */
const TEXT_MISSES = 5000;
const STEP = 1.25;
const MOST = 2;
/** The counters are of the whole boot: they tell of a setting where most of them were counted under it. */
const MOSTLY = 0.5;

/** By class, in layer order: the share of misses in a layer against its share in the texts, at the settings in force. */
export function layerRatiosByClass(known: readonly DeviceKnowledge[], surface: QualitySurface, shape: ModelShape): Map<string, number[]> {
  const sums = new Map<string, { seen: number[]; expected: number[] }>();
  for (const knowledge of known) {
    const counted = missesOf(knowledge, surface, shape);
    if (!counted) continue;
    const sum = sums.get(knowledge.deviceClass) ?? { seen: shape.expertBytes.map(() => 0), expected: shape.expertBytes.map(() => 0) };
    sums.set(knowledge.deviceClass, sum);
    counted.forEach(({ seen, expected }, layer) => {
      sum.seen[layer]! += seen;
      sum.expected[layer]! += expected;
    });
  }
  return new Map([...sums].map(([name, { seen, expected }]) => [name, ratios(seen, expected)]));
}

function missesOf(knowledge: DeviceKnowledge, surface: QualitySurface, shape: ModelShape): { seen: number; expected: number }[] | null {
  const { frame, quarantine } = knowledge;
  const outcome = outcomesOf(knowledge).at(-1);
  if (!frame || quarantine || !outcome || frame.layers.length !== shape.expertBytes.length) return null;
  const slots = frame.layers.map(({ hits, misses }) => Number(hits + misses));
  const quality = surface.predict(outcome.setting);
  if (!quality || outcome.slots < MOSTLY * slots.reduce((sum, each) => sum + each, 0)) return null;
  return frame.layers.map(({ misses }, layer) => ({ seen: Number(misses), expected: quality.layerMissRates[layer]! * slots[layer]! }));
}

function ratios(seen: readonly number[], expected: readonly number[]): number[] {
  const [allSeen, allExpected] = [seen, expected].map((values) => values.reduce((sum, value) => sum + value, 0)) as [number, number];
  if (allExpected <= 0) return seen.map(() => 1);
  return seen.map((misses, layer) => {
    const share = expected[layer]! / allExpected;
    if (share <= 0) return 1;
    const ratio = (misses + TEXT_MISSES * share) / ((allSeen + TEXT_MISSES) * share);
    const bounded = Math.min(Math.max(ratio, 1 / MOST), MOST);
    return STEP ** Math.round(Math.log(bounded) / Math.log(STEP));
  });
}
