/**
 * Which experts one device's tokens want and get, from its reports: a sum that forgets by half in HALF_LIFE_TOKENS, beside
 * what was wanted when the setting in force came. Pure. Counts are kept in sixteenths, so that rare experts fade and do not
 * stay at one; a report of more tokens than MOST_TOKENS counts as that many, so that a count stays small.
 */
import type { DeviceUse, EffectiveSpec, ExpertUse, LayerUse, RouterWindow, UseSight } from '@moefleet/proto';

const HALF_LIFE_TOKENS = 2048;
const MOST_TOKENS = 4096;
const SIXTEENTHS = 16;
/** A reference of fewer tokens would say little of what is usual. */
const REFERENCE_TOKENS = 1024;

export interface UseOwner { deviceId: string; modelHash: string; layers: number; experts: number; effective: EffectiveSpec | undefined; nowMs: number }

/** `report` has been checked against the model. */
export function withReport(known: DeviceUse | null, report: ExpertUse, owner: UseOwner): DeviceUse {
  const use = begun(known, owner);
  const tokens = Math.min(Number(report.tokens), MOST_TOKENS);
  const scale = (SIXTEENTHS * tokens) / Number(report.tokens);
  const left = 2 ** (-tokens / HALF_LIFE_TOKENS);
  const before = use.now ?? { tokens: 0, layers: [], entropyBits: [] };
  const sum = (layer: number, name: keyof LayerUse) => {
    const [old, counts] = [before.layers[layer]?.[name] ?? [], told(report.layers[layer]!, name)];
    return trimmed(Array.from({ length: owner.experts }, (_, expert) => Math.floor((old[expert] ?? 0) * left + (counts[expert] ?? 0) * scale)));
  };
  const now = { ...before, tokens: before.tokens * left + tokens, layers: report.layers.map((_, layer) => ({ wanted: sum(layer, 'wanted'), chosen: sum(layer, 'chosen') })) };
  return { ...use, timeMs: BigInt(owner.nowMs), now, reference: referenceOf(use, now) };
}

/** The window's entropy counts as its share of tokens; one of another shape, or that cannot be true, changes nothing. */
export function withEntropy(known: DeviceUse | null, window: Pick<RouterWindow, 'tokens' | 'entropyBits' | 'experts' | 'modelHash'>, owner: UseOwner): DeviceUse | null {
  const most = Math.log2(owner.experts) + 1e-6;
  const sound = window.modelHash === owner.modelHash && window.experts === owner.experts && window.entropyBits.length === owner.layers && window.entropyBits.every((bits) => bits >= 0 && bits <= most);
  if (!sound) return null;
  const use = begun(known, owner);
  const before = use.now ?? { tokens: 0, layers: [], entropyBits: [] };
  const rate = 1 - 2 ** (-window.tokens / HALF_LIFE_TOKENS);
  const entropyBits = before.entropyBits.length === owner.layers ? before.entropyBits.map((bits, layer) => bits + rate * (window.entropyBits[layer]! - bits)) : [...window.entropyBits];
  const now = { ...before, entropyBits };
  return { ...use, timeMs: BigInt(owner.nowMs), now, reference: referenceOf(use, now) };
}

/** What is known, as far as it is of this model and setting; of another setting, it is the reference. */
function begun(known: DeviceUse | null, { deviceId, modelHash, experts, layers, effective }: UseOwner): DeviceUse {
  const setting = settingName(effective);
  const fresh: DeviceUse = { deviceId, modelHash, experts, setting, lambda: effective?.lambda ?? 0, topJ: effective?.topJ ?? 0, timeMs: 0n, now: undefined, reference: undefined };
  if (!known || known.modelHash !== modelHash || known.experts !== experts || (known.now && known.now.layers.length > 0 && known.now.layers.length !== layers)) return fresh;
  if (known.setting === setting) return known;
  return { ...fresh, reference: known.now && known.now.tokens >= REFERENCE_TOKENS ? wantedOf(known.now) : known.reference };
}

/** What bends the router: what is seen under one belongs together. */
function settingName(effective: EffectiveSpec | undefined): string {
  if (!effective) return '';
  const { routing, lambda, topJ, lambdas, topJs, firstBiasedLayer } = effective;
  return JSON.stringify([routing, lambda, topJ, lambdas, topJs, firstBiasedLayer]);
}

function referenceOf({ reference }: DeviceUse, now: UseSight): UseSight | undefined {
  if (!reference) return now.tokens >= REFERENCE_TOKENS ? wantedOf(now) : undefined;
  return reference.entropyBits.length === 0 ? { ...reference, entropyBits: now.entropyBits } : reference;
}

function wantedOf({ tokens, layers, entropyBits }: UseSight): UseSight {
  return { tokens, entropyBits, layers: layers.map(({ wanted }) => ({ wanted, chosen: [] })) };
}

/** Where nothing is told of what was chosen, it was what was wanted. */
function told(layer: LayerUse, name: keyof LayerUse): readonly number[] {
  return name === 'chosen' && layer.chosen.length === 0 ? layer.wanted : layer[name];
}

function trimmed(counts: number[]): number[] {
  while (counts.length > 0 && counts.at(-1) === 0) counts.pop();
  return counts;
}
