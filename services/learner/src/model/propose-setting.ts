/**
 * The decision for one device, a function of what is known: among the settings whose quality loss is within the budget
 * even at its upper bound, in the mean over the domains and in the worst of them, the one with the most predicted tokens
 * per second; of those within a hundredth of it, the one that costs the least quality. A setting that runs is left only
 * for a clear gain, and at once where it no longer fits the budget. Where something that the choice rests on is missing
 * or contradicts itself, nothing is proposed, and `frozen` says why.
 */
import { Routing } from '@moefleet/proto';
import { ownMissRate } from '@moefleet/runtime';
import { type DeviceMisses, deviceMisses, type ObservedMisses } from './device-misses';
import { deviceLambda } from './routing-strength';
import { holdsEverything, type ModelShape, missBytesPerToken, sameSetting, type Setting } from './setting';
import type { Candidate, QualityPrediction, QualitySurface } from './quality-surface';
import { predictSpeed, type SpeedPosterior, type SpeedPrediction } from './speed-model';

/** nats per token: ln(1 + share of perplexity) */
export interface QualityBudget { readonly meanNats: number; readonly worstNats: number }

/** A change of setting, and how it went. */
export interface Outcome {
  readonly setting: Setting;
  readonly sinceMs: number;
  /** null where nothing had been observed; the standard deviation is 0 where it is not known */
  readonly predicted: Pick<SpeedPrediction, 'tokensPerSecond' | 'sd'> | null;
  readonly observedTokensPerSecond: number | null;
  /** windows of telemetry observed under it */
  readonly windows: number;
  /** the device itself became faster or slower meanwhile, so that the figures do not compare */
  readonly drifted?: boolean;
  /** undone, as it was slower than what ran before */
  readonly undone?: boolean;
}

/** λ of one routing (absent: cache_prior) at most, and a softmax mass lost that the texts' times `factor` may not go beyond. */
export interface Hold { readonly lambda: number; readonly mostMassLost: number; readonly factor: number; readonly seenRouting?: Routing }

export interface ProposalInputs {
  readonly shape: ModelShape;
  readonly surface: QualitySurface;
  /** null: no device of its class has told anything about speed */
  readonly speed: SpeedPosterior | null;
  readonly budget: QualityBudget;
  /** which capacities it may have; the first is preferred among equals */
  readonly capacities: readonly (readonly number[])[];
  readonly maxLambda: number;
  /** a device that loses more softmax mass than the texts is held to less; null or absent: it is not */
  readonly hold?: Hold | null;
  /** what the learner had it run; null: nothing, or an operator's value */
  readonly current: Setting | null;
  /** at the settings it ran, oldest first */
  readonly observed: readonly ObservedMisses[];
  /** how each layer's misses stand to the others', against the texts' (1: alike); default all 1 */
  readonly layerRatios?: readonly number[];
  /** oldest first; the last is `current`'s where there is one */
  readonly history: readonly Outcome[];
  /** variance of one window's relative deviation in speed; default that of a device nothing is known of */
  readonly noise?: number;
  /** take a less bent setting than the best, so that its class's model is told what misses cost */
  readonly explore?: boolean;
  /** why its telemetry is not believed; null where it is */
  readonly quarantined?: string | null;
}

export type Bound =
  | { t: 'budget'; which: 'mean' | 'worst'; domain: string; next: Scored }
  | { t: 'maxLambda'; maxLambda: number; next: Scored }
  | { t: 'drift'; hold: Hold; next: Scored }
  /** more λ would not make it faster by a hundredth */
  | { t: 'speed' }
  /** nothing faster was measured */
  | { t: 'measured' }
  | { t: 'resident' };

export interface Scored {
  readonly setting: Setting;
  readonly quality: QualityPrediction;
  /** misses per slot, with what the device was seen to miss taken into account */
  readonly missRate: number;
  /** null: nothing is known about its speed; fewer misses are then taken for faster */
  readonly speed: SpeedPrediction | null;
}

export interface SettingDecision {
  readonly t: 'propose';
  readonly chosen: Scored;
  /** the model's own routing at the same capacities */
  readonly baseline: Scored;
  /** what would have been taken if nothing ran yet */
  readonly best: Scored;
  /** the best within the budget of another routing or topJ, at the same capacities; null where there is none */
  readonly runnerUp: Scored | null;
  readonly boundBy: Bound;
  readonly why: 'best' | 'kept' | 'exploring' | 'undone';
}

/** Why a device has no proposal, in a word: no model on it, or another; its limits hold too little, or it tells of another shape; it is quarantined; its memory holds too little; nothing is measured there. */
export const FROZEN_REASONS = ['no_model', 'other_model', 'limits', 'shape', 'quarantined', 'memory', 'unmeasured'] as const;
export type FrozenReason = typeof FROZEN_REASONS[number];
export interface Frozen { readonly why: FrozenReason; /** for people */ readonly reason: string }

export type Decision = SettingDecision | { readonly t: 'frozen' } & Frozen;

/** Settings within it are equally fast. */
const EQUAL = 0.01;
/** What a change has to gain: by prediction, and where only misses are known. */
const LEAST_GAIN = 0.03;
const LEAST_FEWER_MISSES = 0.05;
/** A change that made it slower than before by that much, and by two standard errors more, is undone, once it ran for that many windows. */
const SLOWER = 0.05;
const JUDGED_WINDOWS = 3;
/** What was observed follows the latest windows, and is worth that many of them. */
const WORTH_WINDOWS = 6;
const USUAL_NOISE = 0.1 ** 2;

export function proposeSetting(inputs: ProposalInputs): Decision {
  const { surface, shape, capacities, budget } = inputs;
  if (inputs.quarantined) return { t: 'frozen', why: 'quarantined', reason: `its telemetry is not believed: ${inputs.quarantined}` };
  if (capacities.length === 0) return { t: 'frozen', why: 'memory', reason: 'its memory holds less than one token\'s experts' };
  const found = capacities.flatMap((one) => surface.candidates(one));
  if (found.length === 0) return { t: 'frozen', why: 'unmeasured', reason: 'the quality of its model has not been measured at so small a cache yet' };

  const own = deviceMisses(surface, inputs.observed);
  const scored = found.map((candidate) => score(candidate, inputs, own));
  const fits = scored.filter(({ setting, quality }) => deviceLambda(setting) <= inputs.maxLambda && within(quality, budget) && !isHeld({ setting, quality }, inputs.hold));
  const baselines = scored.filter(({ setting }) => setting.lambda === 0);
  const baselineOf = (one: Scored) => baselines.find(({ setting }) => setting.capacities === one.setting.capacities) ?? baselines[0]!;
  const undone = inputs.history.filter((outcome) => outcome.undone);
  const open = fits.filter(({ setting }) => !undone.some((outcome) => sameSetting(outcome.setting, setting)));
  const best = fastest(open.length > 0 ? open : baselines);
  const decide = (chosen: Scored, why: SettingDecision['why']): SettingDecision =>
    ({ t: 'propose', chosen, baseline: baselineOf(chosen), best, runnerUp: runnerUpOf(chosen, open), boundBy: boundOf(chosen, scored, inputs), why });

  if (holdsEverything(shape, best.setting.capacities)) return { ...decide(baselineOf(best), 'best'), boundBy: { t: 'resident' } };
  const before = slowerThanBefore(inputs);
  const back = before && fits.find(({ setting }) => sameSetting(setting, before.setting));
  if (back) return decide(back, 'undone');
  const { current } = inputs;
  const running = current && fits.find(({ setting }) => sameSetting(setting, current));
  if (running && !clearlyBetter(best, running)) return decide(running, 'kept');
  const modest = inputs.explore ? exploring(best, open) : undefined;
  return modest ? decide(modest, 'exploring') : decide(best, 'best');
}

/** The upper bounds of the loss against both budgets; the model's own routing always fits. */
export function within(quality: QualityPrediction, budget: QualityBudget): boolean {
  return quality.loss.upper <= budget.meanNats && quality.worst.upper <= budget.worstNats;
}

function isHeld({ setting, quality }: Candidate, hold: Hold | null | undefined): boolean {
  if (!hold || setting.lambda === 0) return false;
  const tooFar = setting.routing === (hold.seenRouting || Routing.ROUTING_CACHE_PRIOR) && setting.lambda > hold.lambda;
  return tooFar || quality.mostMassLost * hold.factor > hold.mostMassLost;
}

/** Share of the budget used up at the upper bound, of the tighter of the two; above 1 it is beyond. */
export function budgetUse(quality: QualityPrediction, budget: QualityBudget): number {
  return Math.max(quality.loss.upper / budget.meanNats, quality.worst.upper / budget.worstNats);
}

function score({ setting, quality }: Candidate, { shape, speed, layerRatios, observed }: ProposalInputs, own: DeviceMisses): Scored {
  const rates = quality.layerMissRates.map((rate, layer) => Math.min(ownMissRate(rate, own) * (layerRatios?.[layer] ?? 1), 1));
  const ran = observed.some((one) => one.slots > 0 && sameSetting(one.setting, setting));
  return {
    setting, quality, missRate: rates.reduce((sum, rate) => sum + rate, 0) / rates.length,
    speed: speed && predictSpeed(speed, missBytesPerToken(shape, rates), ran ? own.sdSeen : own.sdOther),
  };
}

/** What is maximised: tokens per second, or, where nothing is known of them, the fewest misses. */
function merit({ speed, missRate }: Scored): number {
  return speed ? speed.tokensPerSecond : 1 / (missRate + 1e-6);
}

function fastest(candidates: readonly Scored[]): Scored {
  const top = candidates.reduce((best, one) => Math.max(best, merit(one)), 0);
  return candidates
    .filter((one) => merit(one) >= top * (1 - EQUAL))
    .reduce((best, one) => (one.quality.loss.upper < best.quality.loss.upper ||
      (one.quality.loss.upper === best.quality.loss.upper && merit(one) > merit(best)) ? one : best));
}

function runnerUpOf({ setting }: Scored, open: readonly Scored[]): Scored | null {
  const others = open.filter((one) => one.setting.lambda > 0 && one.setting.capacities === setting.capacities && (one.setting.routing !== setting.routing || one.setting.topJ !== setting.topJ));
  return others.length > 0 ? fastest(others) : null;
}

/** Whether there is nothing to choose between them but their loss. */
export function equallyFast(one: Scored, other: Scored): boolean {
  return merit(one) >= merit(other) * (1 - EQUAL);
}

function clearlyBetter(best: Scored, running: Scored): boolean {
  if (sameSetting(best.setting, running.setting)) return false;
  if (!best.speed || !running.speed) return best.missRate < running.missRate * (1 - LEAST_FEWER_MISSES);
  return best.speed.tokensPerSecond > running.speed.tokensPerSecond * (1 + LEAST_GAIN);
}

/** What ran before the present setting, where that has turned out slower. */
function slowerThanBefore({ history, noise = USUAL_NOISE }: Pick<ProposalInputs, 'history' | 'noise'>): Outcome | undefined {
  const [before, now] = history.slice(-2);
  if (!before || !now || now.undone || before.undone || now.drifted || now.windows < JUDGED_WINDOWS || before.windows < JUDGED_WINDOWS) return undefined;
  if (now.observedTokensPerSecond === null || before.observedTokensPerSecond === null) return undefined;
  const stderr = Math.sqrt(noise * (1 / Math.min(now.windows, WORTH_WINDOWS) + 1 / Math.min(before.windows, WORTH_WINDOWS)));
  return now.observedTokensPerSecond < before.observedTokensPerSecond * (1 - SLOWER - 2 * stderr) ? before : undefined;
}

/** Within the budget, with half as much again to read, where there is such a setting. */
function exploring(best: Scored, open: readonly Scored[]): Scored | undefined {
  const wanted = best.missRate * 1.5;
  return open
    .filter(({ setting, missRate, quality }) => setting.capacities === best.setting.capacities && missRate > best.missRate * 1.2 && quality.loss.upper <= best.quality.loss.upper)
    .reduce<Scored | undefined>((found, one) => (!found || Math.abs(one.missRate - wanted) < Math.abs(found.missRate - wanted) ? one : found), undefined);
}

/** Why nothing faster was taken. */
function boundOf(chosen: Scored, scored: readonly Scored[], { budget, maxLambda, hold }: ProposalInputs): Bound {
  const faster = scored.filter((one) => merit(one) > merit(chosen) * (1 + EQUAL));
  const overLambda = faster.find(({ setting, quality }) => deviceLambda(setting) > maxLambda && within(quality, budget));
  if (overLambda) return { t: 'maxLambda', maxLambda, next: overLambda };
  const held = hold && faster.find((one) => isHeld(one, hold) && within(one.quality, budget));
  if (held) return { t: 'drift', hold, next: held };
  const over = faster.filter(({ quality }) => !within(quality, budget));
  if (over.length > 0) {
    const next = over.reduce((least, one) => (budgetUse(one.quality, budget) < budgetUse(least.quality, budget) ? one : least));
    return next.quality.loss.upper > budget.meanNats
      ? { t: 'budget', which: 'mean', domain: '', next }
      : { t: 'budget', which: 'worst', domain: next.quality.worst.domain, next };
  }
  return scored.some((one) => one.missRate < chosen.missRate * (1 - EQUAL)) ? { t: 'speed' } : { t: 'measured' };
}
