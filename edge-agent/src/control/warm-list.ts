/**
 * A warm list as it comes from outside or from the disk, and its check against the loaded model. Nothing of it is
 * trusted: what is out of range, there twice or too long makes the whole list refused, by name.
 */
import type { WarmList } from '@moefleet/proto';
import type { LoadedModel } from '../engine-host';

/** Of any model; far above what a list has. */
const MOST_LAYERS = 4096;
const MOST_EXPERTS = 65_536;

export class WarmListError extends Error {
  override readonly name = 'WarmListError';
}

/** Experts per MoE layer, best first; null: made for another model. Throws WarmListError. */
export function rankedFor(list: WarmList, { hash, info }: Pick<LoadedModel, 'hash'> & { info: Pick<LoadedModel['info'], 'moeLayers' | 'experts'> }): Int32Array[] | null {
  if (list.modelHash !== hash) return null;
  if (list.layers.length !== info.moeLayers.length) throw new WarmListError(`warm list: expected one entry per MoE layer of the model (${info.moeLayers.length}), found ${list.layers.length}`);
  return list.layers.map(({ experts }, i) => {
    const where = `warm list, blk.${info.moeLayers[i]}`;
    if (experts.length > info.experts) throw new WarmListError(`${where}: at most ${info.experts} experts, found ${experts.length}`);
    const seen = new Set<number>();
    for (const expert of experts) {
      if (!Number.isInteger(expert) || expert < 0 || expert >= info.experts) throw new WarmListError(`${where}: expected experts from 0 to ${info.experts - 1}, found ${expert}`);
      if (seen.has(expert)) throw new WarmListError(`${where}: expert ${expert} is there twice`);
      seen.add(expert);
    }
    return Int32Array.from(experts);
  });
}

/** Refuses what would be a burden to keep, whatever model it is for. Throws WarmListError. */
export function checkListSize(list: WarmList): void {
  if (list.modelHash.length > 128) throw new WarmListError(`warm list: a model hash of ${list.modelHash.length} characters`);
  if (list.layers.length > MOST_LAYERS) throw new WarmListError(`warm list: ${list.layers.length} layers; at most ${MOST_LAYERS}`);
  const experts = list.layers.reduce((sum, layer) => sum + layer.experts.length, 0);
  if (experts > MOST_EXPERTS) throw new WarmListError(`warm list: ${experts} experts in all; at most ${MOST_EXPERTS}`);
}
