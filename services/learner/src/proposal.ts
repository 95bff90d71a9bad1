/**
 * What is proposed for a device, in messages: the model's decision, what it was predicted from and what bound it, in
 * words for people and in figures for `moefleet learner explain`. Where there is no decision, the reason.
 */
import { type Device, type DeviceKnowledge, type LambdaHold, type Predicted, type Proposal, Routing, ValueSource_Layer } from '@moefleet/proto';
import { type DeviceCapacities, splitByMisses } from './device-capacities';
import { evidenceOf, outcomeMessages, outcomesOf } from './knowledge';
import {
  bytesOfCapacities, type Decision, equallyFast, fieldsOf, type Frozen, type FrozenReason, type ModelShape, posterior, proposeSetting, type QualityBudget, type QualitySurface, sameCapacities, type Scored, type Setting,
  type SettingDecision, settingOfFields, settingText, type SpeedPrior,
} from './model';

/** What the agent takes where topJ is not set; for λ 0, where it means nothing. */
const DEFAULT_TOP_J = 2;
/** A split that saves less is not worth the change. */
const LEAST_SPLIT_GAIN = 0.02;

export interface ProposalContext {
  surface: QualitySurface;
  modelHash: string;
  textHashes: readonly string[];
  shape: ModelShape;
  /** uniform capacities that were measured, ascending */
  levels: readonly number[];
  prior: SpeedPrior;
  /** see layer-ratios.ts */
  layerRatios: readonly number[];
  budget: QualityBudget;
  explore: boolean;
  nowMs: number;
}

export interface DeviceProposal { proposal: Proposal; knowledge: DeviceKnowledge; /** null: frozen, for `frozen` */ chosen: Scored | null; frozen: FrozenReason | null }

/** A device that the learner has no opinion on, and why. */
export function noProposal(device: Device, reason: string, nowMs: number): Proposal {
  return {
    deviceId: device.id, modelHash: device.info?.model?.hash ?? '', lambda: 0, topJ: 0, capacities: [], predictedMissRate: 0,
    predictedCrossEntropyLoss: 0, baselineMissRate: 0, reason, proposed: false, timeMs: BigInt(nowMs), textHash: '',
    routing: Routing.ROUTING_UNSPECIFIED, maxRank: undefined, massThreshold: undefined,
  };
}

/** Why its model is none of those that are measured; null where it is. */
export function whyNotMeasured({ info }: Device, modelHashes: readonly string[]): Frozen | null {
  const hash = info?.model?.hash;
  if (!hash) return { why: 'no_model', reason: 'no model is loaded on the device' };
  if (!modelHashes.includes(hash)) return { why: 'other_model', reason: `the device runs model ${short(hash)}, the learner measures ${modelHashes.map(short).join(', ')}` };
  return null;
}

/** Why nothing can be said of the device at all; null where something can. */
export function whyNotLearnt(device: Device, modelHash: string): Frozen | null {
  const notMeasured = whyNotMeasured(device, [modelHash]);
  if (notMeasured) return notMeasured;
  const model = device.info!.model!;
  const limits = device.info!.limits;
  if (!limits || limits.maxCapacities.length === 0) return { why: 'limits', reason: 'the device has not told what its cache limit holds' };
  if (limits.maxCapacities.some((capacity) => capacity < model.topK)) {
    return { why: 'limits', reason: `the device's cache limit holds ${Math.min(...limits.maxCapacities)} experts of a layer, a token needs ${model.topK}` };
  }
  return null;
}

export function proposeFor(device: Device, knowledge: DeviceKnowledge, at: DeviceCapacities, context: ProposalContext): DeviceProposal {
  const { surface, shape, budget, nowMs } = context;
  const outcomes = outcomesOf(knowledge);
  const evidence = evidenceOf(knowledge.speed);
  const inputs = {
    shape, surface, budget, maxLambda: device.info?.limits?.maxLambda ?? 0, current: currentSetting(device, knowledge, at, shape), history: outcomes, explore: context.explore, noise: evidence.noise,
    speed: evidence.windows > 0 || context.prior.devices > 0 ? posterior(evidence, context.prior) : null,
    hold: knowledge.drift?.hold ?? null, layerRatios: context.layerRatios, observed: outcomes, quarantined: knowledge.quarantine?.reason ?? null,
  };
  let decision = proposeSetting({ ...inputs, capacities: at.capacities.length > 0 ? [at.capacities] : [] });
  if (decision.t === 'propose' && at.from !== 'operator') decision = withSplit(decision, inputs.current, context, (capacities) => proposeSetting({ ...inputs, capacities }));
  if (decision.t === 'frozen') {
    return { proposal: { ...noProposal(device, decision.reason, nowMs), textHash: context.textHashes[0] ?? '' }, knowledge: { ...knowledge, choice: undefined }, chosen: null, frozen: decision.why };
  }
  const undone = decision.why === 'undone' ? outcomes.map((one, i) => (i === outcomes.length - 1 ? { ...one, undone: true } : one)) : outcomes;
  return {
    chosen: decision.chosen, frozen: null,
    proposal: proposalOf(device, decision, at, knowledge.drift?.hold, context),
    knowledge: { ...knowledge, outcomes: outcomeMessages(undone), choice: choiceOf(decision, inputs.maxLambda, at, context) },
  };
}

/** The same bytes, split over the layers by what they save, where that is clearly better; what runs is always a candidate. */
function withSplit(even: SettingDecision, current: Setting | null, { surface, shape, levels, layerRatios }: ProposalContext, decide: (capacities: (readonly number[])[]) => Decision): Decision {
  const { setting, quality } = even.best;
  const misses = (rates: readonly number[]) => rates.reduce((sum, rate, layer) => sum + rate * layerRatios[layer]!, 0);
  const capacities = [setting.capacities];
  const split = splitByMisses(surface, shape, setting, levels, layerRatios);
  const better = split && surface.predict({ ...setting, capacities: split });
  if (better && misses(better.layerMissRates) < misses(quality.layerMissRates) * (1 - LEAST_SPLIT_GAIN)) capacities.push(split);
  const fits = current && current.capacities.length === setting.capacities.length && bytesOfCapacities(shape, current.capacities) <= bytesOfCapacities(shape, setting.capacities);
  if (fits && !capacities.some((one) => sameCapacities(one, current.capacities)) && surface.candidates(current.capacities).length > 0) capacities.push(current.capacities);
  return capacities.length === 1 ? even : decide(capacities);
}

/**
 * What the learner had this device run so far, or is about to: a proposal that differs takes the device out of the rollout
 * that is bringing the one before. An operator's value is not ours to keep.
 */
function currentSetting(device: Device, { choice }: DeviceKnowledge, at: DeviceCapacities, shape: ModelShape): Setting | null {
  if (choice?.chosen) return { routing: choice.chosen.routing, lambda: choice.chosen.lambda, topJ: choice.chosen.topJ, capacities: choice.chosen.capacities };
  const ours = device.sources.some((source) => source.field === 'lambda' && source.layer === ValueSource_Layer.LAYER_LEARNER);
  const { desired } = device;
  if (!ours || desired?.lambda === undefined) return null;
  const capacities = desired.cache?.$case === 'capacities' ? desired.cache.value.experts : at.capacities;
  return settingOfFields({ ...desired, lambda: desired.lambda, topJ: desired.topJ ?? DEFAULT_TOP_J }, capacities, shape);
}

function proposalOf(device: Device, decision: SettingDecision, at: DeviceCapacities, hold: LambdaHold | undefined, { modelHash, textHashes, shape, budget, nowMs }: ProposalContext): Proposal {
  const { chosen, baseline } = decision;
  const { setting } = chosen;
  const { routing, lambda, topJ, maxRank, massThreshold } = fieldsOf(setting, shape);
  return {
    deviceId: device.id, modelHash, routing, lambda, topJ: setting.lambda === 0 ? Math.min(DEFAULT_TOP_J, shape.topK) : topJ, maxRank, massThreshold, capacities: [...setting.capacities],
    predictedMissRate: chosen.missRate, predictedCrossEntropyLoss: chosen.quality.loss.mean, baselineMissRate: baseline.missRate,
    reason: reasonText(decision, at, budget, hold, shape), proposed: true, timeMs: BigInt(nowMs), textHash: textHashes[0] ?? '',
  };
}

const FROM_TEXT: Record<DeviceCapacities['from'], string> = {
  'device limit': 'the device\'s limit', 'safe memory': 'what it has shown it can spare', operator: 'pinned by an operator',
};

function reasonText(decision: SettingDecision, at: DeviceCapacities, budget: QualityBudget, hold: LambdaHold | undefined, shape: ModelShape): string {
  const { chosen, baseline, boundBy, why, best } = decision;
  const where = `capacity ${capacityText(chosen.setting.capacities)} (${FROM_TEXT[at.from]}${sameCapacities(chosen.setting.capacities, at.capacities) ? '' : ', split by misses'})`;
  if (boundBy.t === 'resident') return `every expert fits into ${where}, λ has nothing to save`;
  const { loss, worst } = chosen.quality;
  const speed = chosen.speed ? `, ${chosen.speed.tokensPerSecond.toFixed(1)} tokens/s${chosen.setting.lambda > 0 ? ` instead of ${baseline.speed!.tokensPerSecond.toFixed(1)}` : ''}` : '';
  const what = chosen.setting.lambda === 0
    ? `${nameOf(chosen, shape)} at ${where}: ${share(chosen.missRate)} of slots miss${speed}`
    : `${nameOf(chosen, shape)} at ${where}: ${share(chosen.missRate)} of slots miss instead of ${share(baseline.missRate)}${speed}, for ${perplexity(loss.mean)} perplexity, ` +
      `at most ${perplexity(loss.upper)} of a budget of ${perplexity(budget.meanNats)}${chosen.quality.domains.length > 1 ? ` (${worst.domain}: at most ${perplexity(worst.upper)} of ${perplexity(budget.worstNats)})` : ''}`;
  const kept = why === 'kept' && best !== chosen ? `; kept, as ${nameOf(best, shape)} would gain too little` : '';
  const other = why === 'exploring' ? '; bent less than it could be for a while, to see what misses cost on such devices' : why === 'undone' ? '; back to it, as the latest change has made the device slower' : '';
  return `${what}; ${boundText(decision, budget, hold, shape)}${runnerUpText(decision, shape)}${kept}${other}`;
}

/** Why no other topJ, or routing, was taken. */
function runnerUpText({ chosen, best, runnerUp }: SettingDecision, shape: ModelShape): string {
  if (!runnerUp || chosen !== best || chosen.setting.lambda === 0) return '';
  const other = runnerUp.setting.routing === chosen.setting.routing ? 'another topJ' : 'another routing';
  const speed = runnerUp.speed ? `${runnerUp.speed.tokensPerSecond.toFixed(1)} tokens/s` : `${share(runnerUp.missRate)} of slots missed`;
  const than = equallyFast(runnerUp, chosen) ? `as fast within 1%, but may cost ${perplexity(runnerUp.quality.loss.upper)}` : 'slower';
  return `; the best of ${other} within the budget, ${nameOf(runnerUp, shape)}, is ${than}: ${speed}`;
}

/** Why nothing faster was taken. */
function boundText({ boundBy }: SettingDecision, budget: QualityBudget, hold: LambdaHold | undefined, shape: ModelShape): string {
  switch (boundBy.t) {
    case 'drift': return `${hold && hold.seenRouting > Routing.ROUTING_CACHE_PRIOR ? 'strength' : 'λ'} held at ${boundBy.hold.lambda} or less: ${hold?.reason ?? 'more softmax mass is lost than on any text'} (topJ ${hold?.seenTopJ ?? 0}), ${boundBy.hold.factor.toFixed(2)} times as much; ${nameOf(boundBy.next, shape)} would miss ${share(boundBy.next.missRate)}`;
    case 'maxLambda': return `bound by the device's own limit of λ ${boundBy.maxLambda}`;
    case 'budget': {
      const { quality } = boundBy.next;
      const cost = boundBy.which === 'mean' ? `${perplexity(quality.loss.upper)}` : `${perplexity(quality.worst.upper)} in ${boundBy.domain}, beyond ${perplexity(budget.worstNats)}`;
      return `bound by the budget: ${nameOf(boundBy.next, shape)} would miss ${share(boundBy.next.missRate)} but may cost ${cost}`;
    }
    case 'speed': return 'bound by speed: fewer misses would not make it faster';
    case 'measured': return 'no measured setting is faster';
    case 'resident': return 'every expert is resident';
  }
}

function choiceOf(decision: SettingDecision, maxLambda: number, at: DeviceCapacities, { budget, textHashes }: ProposalContext): DeviceKnowledge['choice'] {
  const { chosen, boundBy } = decision;
  return {
    chosen: predicted(chosen), baseline: predicted(decision.baseline), beyond: 'next' in boundBy ? predicted(boundBy.next) : undefined,
    boundBy: boundBy.t === 'budget' ? (boundBy.which === 'mean' ? 'mean budget' : 'worst domain budget') : boundBy.t === 'maxLambda' ? 'device limit' : boundBy.t,
    why: decision.why, meanBudgetNats: budget.meanNats, worstBudgetNats: budget.worstNats, maxLambda, missRatio: chosen.quality.missRate > 0 ? chosen.missRate / chosen.quality.missRate : 1, textHashes: [...textHashes],
    domains: chosen.quality.domains.map(({ domain, ...loss }) => ({ domain, loss })),
    capacityFrom: at.from, capacitySplit: sameCapacities(chosen.setting.capacities, at.capacities) ? 'even' : 'by misses',
  };
}

function predicted({ setting, quality, missRate, speed }: Scored): Predicted {
  const { domain, ...loss } = quality.worst;
  return {
    ...setting, capacities: [...setting.capacities], loss: quality.loss, worst: { domain, loss }, missRate,
    tokensPerSecond: speed?.tokensPerSecond ?? 0, tokensPerSecondSd: speed?.sd ?? 0, measured: quality.measured,
  };
}

function nameOf({ setting }: Scored, shape: ModelShape): string {
  return settingText(setting, shape);
}

export function capacityText(capacities: readonly number[]): string {
  const [low, high] = [Math.min(...capacities), Math.max(...capacities)];
  return low === high ? String(low) : `${low} to ${high}`;
}

function share(rate: number): string {
  return `${(rate * 100).toFixed(1)}%`;
}

function perplexity(nats: number): string {
  const percent = Number((Math.expm1(nats) * 100).toFixed(2)) || 0;
  return `${percent >= 0 ? '+' : ''}${percent.toFixed(2)}%`;
}

function short(hash: string): string {
  return hash.slice(0, 12);
}
