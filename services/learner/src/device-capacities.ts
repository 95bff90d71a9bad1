/**
 * The capacities a device is learned about at: the largest its own limit allows or, where an operator has pinned the
 * cache, those that are in force. λ costs more with fewer experts resident, so one that was measured at the limit may
 * be beyond the budget in a cache that is pinned smaller.
 */
import { type Device, ValueSource_Layer as Layer } from '@moefleet/proto';

const PIN_LAYERS = [Layer.LAYER_DEVICE_PIN, Layer.LAYER_GROUP_PIN, Layer.LAYER_FLEET_PIN];
const CACHE_FIELDS = ['capacities', 'cache_bytes'];

/** `capacities` is empty where the device has not told. */
export function deviceCapacities(device: Device): { capacities: readonly number[]; pinned: boolean } {
  const limit = device.info?.limits?.maxCapacities ?? [];
  const inForce = device.reported?.effective?.capacities ?? [];
  const pinned = device.sources.some(({ field, layer }) => CACHE_FIELDS.includes(field) && PIN_LAYERS.includes(layer));
  return pinned && inForce.length === limit.length ? { capacities: inForce, pinned } : { capacities: limit, pinned: false };
}
