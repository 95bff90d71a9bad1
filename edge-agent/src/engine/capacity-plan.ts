/**
 * How many experts of each layer fit a budget of bytes. Every layer gets at least one token's experts (an LRU below
 * that never hits); what is left goes, one expert at a time, to the layer that holds the fewest bytes, so that layers
 * end up even by bytes even where their experts differ in size.
 */
import type { ModelInfo } from '../native';
import { BadArgumentError, CapacityError } from './engine-error';

type Layers = Pick<ModelInfo, 'moeLayers' | 'experts' | 'topK' | 'expertBytes'>;

/** Capacities in layer order, each in [topK, experts], that together take at most `cacheBytes`; CapacityError below one token cycle. */
export function capacitiesForBytes(info: Layers, cacheBytes: number): number[] {
  const needed = info.expertBytes.reduce((sum, bytes) => sum + info.topK * bytes, 0);
  if (!(cacheBytes >= needed)) {
    throw new CapacityError(`a cache of ${cacheBytes} bytes is below one token's needs: top-${info.topK} experts of ${info.moeLayers.length} layers are ${needed} bytes`);
  }
  const capacities = info.expertBytes.map(() => info.topK);
  const held = info.expertBytes.map((bytes) => info.topK * bytes);
  for (let left = cacheBytes - needed; ;) {
    const layer = emptiestLayer(info, capacities, held, left);
    if (layer < 0) return capacities;
    capacities[layer]! += 1;
    held[layer]! += info.expertBytes[layer]!;
    left -= info.expertBytes[layer]!;
  }
}

/** The layer with the fewest bytes held that can take another expert out of `left`; -1 for none. */
function emptiestLayer(info: Layers, capacities: number[], held: number[], left: number): number {
  let best = -1;
  info.expertBytes.forEach((bytes, layer) => {
    const fits = capacities[layer]! < info.experts && bytes <= left;
    if (fits && (best < 0 || held[layer]! < held[best]!)) best = layer;
  });
  return best;
}

/** Bytes that a cache of these capacities takes when it is full. */
export function bytesOfCapacities(info: Layers, capacities: readonly number[]): number {
  if (capacities.length !== info.expertBytes.length) {
    throw new BadArgumentError(`capacities: expected one per MoE layer (${info.expertBytes.length}), found ${capacities.length}`);
  }
  return capacities.reduce((sum, capacity, layer) => sum + capacity * info.expertBytes[layer]!, 0);
}
