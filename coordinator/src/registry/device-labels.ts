/**
 * A device has labels of two kinds: those it reports and those operators set. Groups and selectors see both: an
 * operator's wins over a reported one of the same key, and what is under the reserved prefix only operators can set, so
 * that a device cannot put itself into a group by claiming so.
 */
import { isLabelKey, isLabelValue, type Labels } from '@moefleet/runtime';
import { show } from '../errors';

export const RESERVED_PREFIX = 'moefleet.io/';

export function mergeLabels(reported: Labels, operators: Labels): Labels {
  const own = Object.entries(reported).filter(([key]) => !key.startsWith(RESERVED_PREFIX));
  return { ...Object.fromEntries(own), ...operators };
}

/** What Redis holds; what is no label is left out and told through `damaged`. */
export function decodeLabels(raw: Readonly<Record<string, Buffer>>, damaged: string[]): Labels {
  const entries = Object.entries(raw).map(([key, value]) => [key, value.toString('utf8')] as const);
  const good = entries.filter(([key, value]) => isLabelKey(key) && isLabelValue(value));
  for (const [key] of entries.filter((entry) => !good.includes(entry))) damaged.push(`label ${show(key)}: no label`);
  return Object.fromEntries(good);
}
