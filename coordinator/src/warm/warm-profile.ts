/**
 * What the fleet finds worth holding, for one model and workload: per layer and expert the aged sum of what devices'
 * reports gave it. Pure. A report is worth its share of a token's choice per layer, whatever its length, up to a weight
 * of 1; so a device weighs as much as any other, and however it lies it moves a list by no more than that. Everything
 * halves in HALF_LIFE_MS. Counts are of the model's own choice, which a list does not change: a list can thus not feed on
 * itself.
 */
import type { ExpertUse } from '@moefleet/proto';

export const HALF_LIFE_MS = 7 * 86_400_000;
/** A report of fewer tokens weighs less, in proportion. */
export const WHOLE_REPORT_TOKENS = 256;
/** Layers times experts; a profile is four bytes for each. */
export const MOST_CELLS = 32_768;
/** Reports of its own workload by which a list follows that as much as the whole fleet. */
const TRUSTED_REPORTS = 2;
const HEADER_BYTES = 24;
const MAGIC = 0x4d574631;

export interface Shape { layers: number; experts: number }

export interface WarmProfile extends Shape {
  /** sum of the reports' weights, aged */
  reports: number;
  updatedMs: number;
  /** layers x experts; each layer sums to `reports` */
  counts: Float32Array;
}

/** What one or several reports add. */
export interface Contribution extends Shape { reports: number; counts: Float32Array }

export function emptyProfile({ layers, experts }: Shape, nowMs: number): WarmProfile {
  return { layers, experts, reports: 0, updatedMs: nowMs, counts: new Float32Array(layers * experts) };
}

/**
 * What a report adds, or why it cannot be true of a model of this shape: uses come from tokens, each of which chooses
 * `topK` different experts in every layer.
 */
export function contributionOf(use: ExpertUse, { layers, experts, topK }: Shape & { topK: number }): Contribution | { refused: string } {
  if (layers * experts === 0 || layers * experts > MOST_CELLS) return { refused: `${layers} layers of ${experts} experts: lists are kept for up to ${MOST_CELLS} experts in all` };
  if (use.experts !== experts || use.layers.length !== layers) return { refused: `it is of ${use.layers.length} layers of ${use.experts} experts, the device's model has ${layers} of ${experts}` };
  const tokens = Number(use.tokens);
  if (!(tokens >= 1 && tokens <= 2 ** 32)) return { refused: `${use.tokens} tokens` };
  const reports = Math.min(1, tokens / WHOLE_REPORT_TOKENS);
  const counts = new Float32Array(layers * experts);
  for (const [layer, { wanted, chosen }] of use.layers.entries()) {
    const wrong = impossible(wanted, { experts, topK, tokens }) ?? impossible(chosen, { experts, topK, tokens });
    if (wrong) return { refused: `layer ${layer}: ${wrong}` };
    const sum = total(wanted);
    for (const [expert, count] of wanted.entries()) if (sum > 0) counts[layer * experts + expert] = reports * count / sum;
  }
  return { layers, experts, reports, counts };
}

function impossible(uses: readonly number[], { experts, topK, tokens }: { experts: number; topK: number; tokens: number }): string | undefined {
  const sum = total(uses);
  if (uses.length > experts || sum > tokens * topK) return `${sum} uses of ${uses.length} experts by ${tokens} tokens of ${topK} each`;
  const expert = uses.findIndex((count) => count > tokens);
  return expert < 0 ? undefined : `expert ${expert} used ${uses[expert]} times by ${tokens} tokens`;
}

function total(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

/** `into` gains `more`; both of one shape. */
export function addContribution(into: { reports: number; counts: Float32Array }, more: Contribution): void {
  into.reports += more.reports;
  for (let i = 0; i < into.counts.length; i += 1) into.counts[i]! += more.counts[i]!;
}

/** As it counts at `nowMs`; a clock that went back ages nothing. */
export function aged(profile: WarmProfile, nowMs: number): WarmProfile {
  const factor = 2 ** (-Math.max(0, nowMs - profile.updatedMs) / HALF_LIFE_MS);
  return { ...profile, reports: profile.reports * factor, updatedMs: Math.max(nowMs, profile.updatedMs), counts: profile.counts.map((count) => count * factor) };
}

/** Sum of several of one shape, each as it counts at `nowMs`. */
export function mergeProfiles(shape: Shape, profiles: readonly WarmProfile[], nowMs: number): WarmProfile {
  const sum = emptyProfile(shape, nowMs);
  for (const profile of profiles) addContribution(sum, aged(profile, nowMs));
  return sum;
}

/**
 * Experts of each layer, best first, those that nobody wanted left out: by their share of use in the workload, and in the
 * fleet as far as little is known of the workload.
 */
export function rankExperts(own: WarmProfile | null, fleet: WarmProfile): number[][] {
  const trust = own ? own.reports / (own.reports + TRUSTED_REPORTS) : 0;
  const ranked: number[][] = [];
  for (let layer = 0; layer < fleet.layers; layer += 1) {
    const scores = Array.from({ length: fleet.experts }, (_, expert) => {
      const at = layer * fleet.experts + expert;
      const share = (profile: WarmProfile) => (profile.reports > 0 ? profile.counts[at]! / profile.reports : 0);
      return { expert, score: (own ? trust * share(own) : 0) + (1 - trust) * share(fleet) };
    });
    ranked.push(scores.filter(({ score }) => score > 0).sort((a, b) => b.score - a.score || a.expert - b.expert).map(({ expert }) => expert));
  }
  return ranked;
}

/** Share of the better half of the experts, over layers, that is not in the better half of the other. */
export function shiftBetween(a: readonly number[][], b: readonly number[][]): number {
  let gone = 0;
  let all = 0;
  for (const [layer, list] of a.entries()) {
    const half = Math.max(1, Math.ceil(list.length / 2));
    const others = new Set((b[layer] ?? []).slice(0, half));
    gone += list.slice(0, half).filter((expert) => !others.has(expert)).length;
    all += Math.min(half, list.length);
  }
  return all === 0 ? 0 : gone / all;
}

/** Little endian: magic, layers, experts (uint32 each), reports (float32), updatedMs (float64), counts (float32 each). */
export function encodeProfile({ layers, experts, reports, updatedMs, counts }: WarmProfile): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + 4 * counts.length);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(layers, 4);
  bytes.writeUInt32LE(experts, 8);
  bytes.writeFloatLE(reports, 12);
  bytes.writeDoubleLE(updatedMs, 16);
  for (const [i, count] of counts.entries()) bytes.writeFloatLE(count, HEADER_BYTES + 4 * i);
  return bytes;
}

/** null for whatever is no profile of this shape. */
export function decodeProfile(bytes: Buffer, shape: Shape): WarmProfile | null {
  const cells = shape.layers * shape.experts;
  if (bytes.length !== HEADER_BYTES + 4 * cells || bytes.readUInt32LE(0) !== MAGIC) return null;
  if (bytes.readUInt32LE(4) !== shape.layers || bytes.readUInt32LE(8) !== shape.experts) return null;
  const reports = bytes.readFloatLE(12);
  const updatedMs = bytes.readDoubleLE(16);
  const counts = new Float32Array(cells);
  for (let i = 0; i < cells; i += 1) counts[i] = bytes.readFloatLE(HEADER_BYTES + 4 * i);
  const sound = reports >= 0 && reports < 1e9 && Number.isFinite(updatedMs) && counts.every((count) => count >= 0 && count <= reports * 1.001 + 1e-6);
  return sound ? { ...shape, reports, updatedMs, counts } : null;
}
