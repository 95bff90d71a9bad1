/**
 * Why a device got its λ, as one plain object: what went into the choice, the settings that were looked at, what bound
 * it, and what was seen after. Tables, JSON and the plot show this and nothing else.
 */
import { type DeviceKnowledge, type DriftKnowledge, type Estimate, type ExplainLearnerResponse, type ModelState, type Predicted, type QualitySurface, Routing, routingText, type SettingOutcome, type SurfacePoint } from '@moefleet/proto';
import { AS_THE_TEXT, maxRankAt, type OwnMisses, ownMisses, ownMissRate } from '@moefleet/runtime';
import { routingName } from '../device-view';

const MIB = 1024 * 1024;
/** One-sided 95%, as the learner takes it. */
const BOUND_STDERRS = 1.645;

/** Loss in percent of perplexity: the mean and the one-sided 95% bound. */
export interface Loss { meanPercent: number; atMostPercent: number }

/** `lambda`: how far the routing bends, in [0,1]; `bend`: the same as the routing has it, "λ 0.2", "rank 8", "mass 0.7"; `setting`: all of it, "max_rank 8 topJ 2" */
export interface Bent { routing: string; bend: string; lambda: number; topJ: number; setting: string }

export interface SettingRow extends Bent {
  capacities: number[]; missRate: number; tokensPerSecond: number | null; tokensPerSecondSd: number | null;
  loss: Loss; worst: (Loss & { domain: string }) | null; measured: boolean;
}

/** Of one routing, topJ and λ at the capacities of the choice, as measured in each domain. */
export interface MeasuredRow extends Bent { missRate: number; tokensPerSecond: number | null; domains: { domain: string; lossPercent: number; stderrPercent: number }[]; meanPercent: number }

export interface RoutingDrift {
  /** "model", "workload", "lambda", "lock-in" */
  causes: string[];
  sinceMs: number | null;
  reason: string;
  /** mean per routing event, over these tokens; least and most of the texts at the same setting, null where not measured */
  massLost: number;
  tokens: number;
  leastMeasured: number | null;
  mostMeasured: number | null;
  /** Jensen-Shannon bits per MoE layer; empty: too little is known */
  workloadBits: number[];
  lambdaBits: number[];
  entropyChange: number | null;
  windows: { missRate: number; swapRate: number }[];
  hold: { lambda: number; factor: number; mostMassLost: number; seenUnder: Bent; sinceMs: number; untilMs: number; reason: string; measuredAnew: boolean } | null;
}

export interface Explanation {
  device: string;
  model: string | null;
  reason: string | null;
  proposed: boolean;
  boundBy: string | null;
  why: string | null;
  budgets: { meanPercent: number; worstPercent: number; maxLambda: number } | null;
  memory: { from: string; split: string; capacities: number[]; experts: number; cacheBytes: number; safeBytes: number; badBytes: number | null; shortages: number } | null;
  speed: {
    computeMs: number; computeSd: number; readingMsPerMib: number; readingSd: number; missMibPerToken: number | null; windows: number;
    priorDevices: number; deviceClass: string; readMs: number | null; readBytes: number | null; hiddenShare: number | null; drift: string | null;
  } | null;
  missRatio: number | null;
  /** of its routing under the setting in force; null: nothing has been seen yet */
  routing: RoutingDrift | null;
  quarantine: { reason: string; sinceMs: number; windows: number } | null;
  chosen: SettingRow | null;
  baseline: SettingRow | null;
  beyond: SettingRow | null;
  domains: { domain: string; loss: Loss }[];
  measured: MeasuredRow[];
  /** settings it has run: predicted against observed, oldest first */
  outcomes: (Bent & { capacities: number[]; sinceMs: number; predictedTokensPerSecond: number | null; predictedTokensPerSecondSd: number | null; observedTokensPerSecond: number | null; missRate: number | null; windows: number; note: string })[];
}

export function explain({ device, proposal, knowledge, surfaces }: ExplainLearnerResponse): Explanation {
  const model = device?.info?.model;
  const choice = knowledge?.choice;
  return {
    device: device?.id ?? '',
    model: model?.hash ? `${model.name || 'model'} (${model.hash.slice(0, 12)})` : null,
    reason: proposal?.reason ?? null,
    proposed: proposal?.proposed ?? false,
    boundBy: choice?.boundBy ?? null,
    why: choice?.why ?? null,
    budgets: choice ? { meanPercent: percentOf(choice.meanBudgetNats), worstPercent: percentOf(choice.worstBudgetNats), maxLambda: choice.maxLambda } : null,
    memory: memoryOf(knowledge, model),
    speed: knowledge ? speedOf(knowledge) : null,
    missRatio: choice?.missRatio ?? null,
    routing: knowledge?.drift ? routingOf(knowledge.drift, model) : null,
    quarantine: knowledge?.quarantine ? { reason: knowledge.quarantine.reason, sinceMs: Number(knowledge.quarantine.sinceMs), windows: Number(knowledge.quarantine.windows) } : null,
    chosen: settingRow(choice?.chosen, model), baseline: settingRow(choice?.baseline, model), beyond: settingRow(choice?.beyond, model),
    domains: (choice?.domains ?? []).map(({ domain, loss }) => ({ domain, loss: lossOf(loss) })),
    measured: measuredRows(surfaces, knowledge, model),
    outcomes: (knowledge?.outcomes ?? []).map((one) => outcomeRow(one, model)),
  };
}

function memoryOf(knowledge: DeviceKnowledge | undefined, model: ModelState | undefined): Explanation['memory'] {
  const choice = knowledge?.choice;
  const memory = knowledge?.memory;
  if (!choice?.chosen || !model) return null;
  const { capacities } = choice.chosen;
  return {
    from: choice.capacityFrom, split: choice.capacitySplit, capacities, experts: model.experts,
    cacheBytes: capacities.reduce((sum, capacity, layer) => sum + capacity * Number(model.expertBytes[layer] ?? 0n), 0),
    safeBytes: Number(memory?.safeBytes ?? 0n), badBytes: memory && memory.badBytes > 0n ? Number(memory.badBytes) : null, shortages: memory?.shortages ?? 0,
  };
}

function speedOf({ speed, deviceClass }: DeviceKnowledge): Explanation['speed'] {
  if (!speed?.mean || !speed.sd) return null;
  const readMsPerMib = speed.readBytes > 0 ? speed.readNs / 1e6 / (speed.readBytes / MIB) : null;
  return {
    computeMs: speed.mean.compute, computeSd: speed.sd.compute, readingMsPerMib: speed.mean.reading, readingSd: speed.sd.reading,
    missMibPerToken: speed.observedTokensPerSecond > 0 ? speed.observedMibPerToken : null, windows: Number(speed.windows), priorDevices: speed.priorDevices, deviceClass,
    readMs: speed.readBytes > 0 ? speed.readNs / 1e6 : null, readBytes: speed.readBytes > 0 ? speed.readBytes : null,
    hiddenShare: readMsPerMib ? Math.min(Math.max(1 - speed.mean.reading / readMsPerMib, 0), 1) : null,
    drift: speed.driftCause ? `${speed.driftCause} ${speed.driftSlower ? 'slower' : 'faster'} in window ${speed.driftWindow}` : null,
  };
}

/** Of settings, points and outcomes alike. */
function bent({ routing, lambda, topJ }: { routing: Routing; lambda: number; topJ: number }, model: ModelState | undefined): Bent {
  const method = lambda === 0 || routing === Routing.ROUTING_UNSPECIFIED ? Routing.ROUTING_CACHE_PRIOR : routing;
  const maxRank = model && maxRankAt(lambda, model);
  const bend: Partial<Record<Routing, string>> = {
    [Routing.ROUTING_MAX_RANK]: maxRank ? `rank ${maxRank}` : '', [Routing.ROUTING_CUMULATIVE_THRESHOLD]: `mass ${lambda}`, [Routing.ROUTING_PRUNED]: '',
  };
  const setting = routingText({ routing: method, lambda, topJ, maxRank, massThreshold: lambda });
  return { routing: lambda === 0 ? 'original' : routingName(method)!, bend: bend[method] ?? `λ ${lambda}`, lambda, topJ, setting };
}

function routingOf({ hold, windows, ...drift }: DriftKnowledge, model: ModelState | undefined): RoutingDrift {
  return {
    causes: drift.causes, sinceMs: drift.sinceMs > 0n ? Number(drift.sinceMs) : null, reason: drift.reason, massLost: drift.massLost, tokens: drift.tokens,
    leastMeasured: drift.leastMeasured ?? null, mostMeasured: drift.mostMeasured ?? null, workloadBits: drift.workloadBits, lambdaBits: drift.lambdaBits, entropyChange: drift.entropyChange ?? null,
    windows: windows.map(({ slots, misses, swaps }) => ({ missRate: Number(misses) / Number(slots), swapRate: Number(swaps) / Number(slots) })),
    hold: hold ? {
      lambda: hold.lambda, factor: hold.factor, mostMassLost: hold.mostMassLost, seenUnder: bent({ routing: hold.seenRouting, lambda: hold.seenLambda, topJ: hold.seenTopJ }, model), sinceMs: Number(hold.sinceMs), untilMs: Number(hold.untilMs),
      reason: hold.reason, measuredAnew: hold.measuredAnew,
    } : null,
  };
}

function settingRow(predicted: Predicted | undefined, model: ModelState | undefined): SettingRow | null {
  if (!predicted) return null;
  const { capacities, missRate, measured, worst } = predicted;
  const known = predicted.tokensPerSecond > 0;
  return {
    ...bent(predicted, model), capacities, missRate, measured, loss: lossOf(predicted.loss), worst: worst ? { domain: worst.domain, ...lossOf(worst.loss) } : null,
    tokensPerSecond: known ? predicted.tokensPerSecond : null, tokensPerSecondSd: known ? predicted.tokensPerSecondSd : null,
  };
}

/** Settings measured in every domain at the capacities of the choice, by routing, topJ and λ. */
function measuredRows(surfaces: readonly QualitySurface[], knowledge: DeviceKnowledge | undefined, model: ModelState | undefined): MeasuredRow[] {
  const capacities = knowledge?.choice?.chosen?.capacities;
  if (!capacities || surfaces.length === 0) return [];
  const at = surfaces.map(({ points }) => points.filter((point) => point.capacities.join() === capacities.join()));
  const rows = at[0]!.flatMap((first) => {
    const points = at.map((all) => all.find((point) => point.lambda === first.lambda && (first.lambda === 0 || (point.topJ === first.topJ && point.routing === first.routing))));
    return points.every((point) => point !== undefined) ? [measuredRow(points, surfaces, knowledge, model)] : [];
  });
  return rows.sort((a, b) => Number(a.lambda > 0) - Number(b.lambda > 0) || (a.routing < b.routing ? -1 : a.routing > b.routing ? 1 : 0) || a.topJ - b.topJ || a.lambda - b.lambda);
}

function measuredRow(points: readonly SurfacePoint[], surfaces: readonly QualitySurface[], knowledge: DeviceKnowledge | undefined, model: ModelState | undefined): MeasuredRow {
  const average = (read: (point: SurfacePoint) => number) => points.reduce((sum, point) => sum + read(point), 0) / points.length;
  const missRate = ownMissRate(average((point) => point.missRate), ownOf(knowledge?.choice));
  return {
    ...bent(points[0]!, model), missRate, tokensPerSecond: speedAt(missRate, knowledge, model),
    domains: points.map((point, i) => ({ domain: surfaces[i]!.domain || surfaces[i]!.textHash.slice(0, 8), lossPercent: percentOf(point.crossEntropyLoss), stderrPercent: point.crossEntropyLossStderr * 100 })),
    meanPercent: percentOf(average((point) => point.crossEntropyLoss)),
  };
}

/** What the choice says that it misses more, or less, than the texts. */
function ownOf(choice: DeviceKnowledge['choice']): OwnMisses {
  const seen = choice?.chosen?.missRate ?? 0;
  const said = seen / (choice?.missRatio || 1);
  return seen > 0 ? ownMisses(seen, said, Math.sqrt(said)) : AS_THE_TEXT;
}

/** By the learner's own arithmetic: compute + reading x MiB missed. */
function speedAt(missRate: number, knowledge: DeviceKnowledge | undefined, model: ModelState | undefined): number | null {
  const mean = knowledge?.speed?.mean;
  if (!mean || !model || !knowledge?.choice?.chosen?.tokensPerSecond) return null;
  return 1000 / (mean.compute + mean.reading * missRate * (Number(model.tokenCycleBytes) / MIB));
}

function outcomeRow(outcome: SettingOutcome, model: ModelState | undefined): Explanation['outcomes'][number] {
  const { capacities, slots, misses } = outcome;
  return {
    ...bent(outcome, model), capacities, sinceMs: Number(outcome.sinceMs), windows: Number(outcome.windows),
    predictedTokensPerSecond: outcome.predictedTokensPerSecond || null, predictedTokensPerSecondSd: outcome.predictedTokensPerSecondSd || null, observedTokensPerSecond: outcome.observedTokensPerSecond || null,
    missRate: slots > 0n ? Number(misses) / Number(slots) : null,
    note: [outcome.predictedTokensPerSecond ? '' : 'not predicted: its speed was not known yet, or it was not the learner\'s choice', outcome.undone ? 'taken back, it was slower' : '', outcome.drifted ? 'the device\'s speed drifted' : ''].filter(Boolean).join('; '),
  };
}

function lossOf(loss: Estimate | undefined): Loss {
  return { meanPercent: percentOf(loss?.mean ?? 0), atMostPercent: percentOf(loss?.upper ?? 0) };
}

export function percentOf(nats: number): number {
  return Math.expm1(nats) * 100;
}

/** Half of the bar that a point of a plot gets. */
export function boundPercent(stderrPercent: number): number {
  return BOUND_STDERRS * stderrPercent;
}
