/**
 * The capacities a device may be given: where an operator has pinned the cache, those in force and no others; else as
 * many bytes as it has shown it can spare, and never more than its own limit. λ costs more with fewer experts resident,
 * so one that was measured at the limit may be beyond the budget in a smaller cache.
 */
import { type Device, ValueSource_Layer as Layer } from '@moefleet/proto';
import { bytesOfCapacities, type MemoryState, type MissCurve, type ModelShape, type QualitySurface, type Setting, splitBytes } from './model';

const PIN_LAYERS = [Layer.LAYER_DEVICE_PIN, Layer.LAYER_GROUP_PIN, Layer.LAYER_FLEET_PIN];
const CACHE_FIELDS = ['capacities', 'cache_bytes'];

export type CapacityFrom = 'device limit' | 'safe memory' | 'operator';
export interface DeviceCapacities { readonly capacities: readonly number[]; readonly from: CapacityFrom }

/** `capacities` is empty where the device has not told, or has too little memory for one token. */
export function deviceCapacities(device: Device, memory: MemoryState | null, shape: ModelShape): DeviceCapacities {
  const limit = device.info?.limits?.maxCapacities ?? [];
  const inForce = device.reported?.effective?.capacities ?? [];
  const pinned = device.sources.some(({ field, layer }) => CACHE_FIELDS.includes(field) && PIN_LAYERS.includes(layer));
  if (pinned && inForce.length === limit.length) return { capacities: inForce, from: 'operator' };
  if (!memory || limit.length === 0 || memory.safeBytes >= bytesOfCapacities(shape, limit)) return { capacities: limit, from: 'device limit' };
  return { capacities: shrunk(limit, memory.safeBytes, shape), from: 'safe memory' };
}

/** Down from the limit to what the bytes hold, the same number of experts from every layer, so that few sizes are to be measured. */
function shrunk(limit: readonly number[], bytes: number, shape: ModelShape): number[] {
  for (let less = 1; less <= Math.max(...limit); less += 1) {
    const capacities = limit.map((capacity) => Math.max(capacity - less, shape.topK));
    if (bytesOfCapacities(shape, capacities) <= bytes) return capacities;
  }
  return [];
}

/** The same bytes, split over the layers by what they save at this setting on such devices; null where the surface does not tell. */
export function splitByMisses(surface: QualitySurface, shape: ModelShape, setting: Setting, levels: readonly number[], layerRatios: readonly number[]): number[] | null {
  const points = levels.flatMap((capacity) => {
    const quality = surface.predict({ ...setting, capacities: shape.expertBytes.map(() => capacity) });
    return quality ? [{ capacity, rates: quality.layerMissRates }] : [];
  });
  if (points.length < 2) return null;
  const curves: MissCurve[] = shape.expertBytes.map((_, layer) => points.map(({ capacity, rates }) => ({ capacity, missRate: Math.min(rates[layer]! * layerRatios[layer]!, 1) })));
  return splitBytes(shape, curves, bytesOfCapacities(shape, setting.capacities));
}
