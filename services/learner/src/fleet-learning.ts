/**
 * All devices of the learner's model together: what their newest frames add, the priors their classes share, and what is
 * proposed for each. Pure: the job (learner-job.ts) reads, measures and writes.
 */
import type { Device, DeviceKnowledge, Proposal } from '@moefleet/proto';
import { type DeviceCapacities, deviceCapacities } from './device-capacities';
import { lookAt } from './device-sight';
import type { EvaluationSubject } from './evaluator';
import { evidenceOf, isSound, memoryOf, speedMessage } from './knowledge';
import { layerRatiosByClass } from './layer-ratios';
import { fitPrior, type Frozen, type FrozenReason, type ModelShape, posterior, type QualityBudget, type QualitySurface, readingUncertainty, sameCapacities, type Scored, type SpeedPrior, VAGUE_PRIOR } from './model';
import { mostFrequentFirst } from './most-frequent';
import { type BudgetRule, budgetFor } from './quality-budget';
import { noProposal, proposeFor, whyNotLearnt } from './proposal';

export interface NotLearnt { proposal: Proposal; why: FrozenReason }

export interface Learnt { device: Device; knowledge: DeviceKnowledge; at: DeviceCapacities }

/** Devices that are learnt about, and the answers for those that are not. */
export function lookAtAll(devices: readonly Device[], known: ReadonlyMap<string, DeviceKnowledge>, subject: EvaluationSubject, nowMs: number): { learnt: Learnt[]; others: NotLearnt[] } {
  const learnt: Learnt[] = [];
  const others: NotLearnt[] = [];
  const shape = shapeOfSubject(subject);
  for (const device of devices) {
    const frozen = whyNotLearnt(device, subject.modelHash) ?? whyNotOfShape(device, subject);
    if (frozen) {
      others.push({ proposal: noProposal(device, frozen.reason, nowMs), why: frozen.why });
      continue;
    }
    const before = known.get(device.id);
    const knowledge = lookAt(device, before && isSound(before) ? before : null, nowMs);
    learnt.push({ device, knowledge, at: deviceCapacities(device, memoryOf(knowledge), shape) });
  }
  return { learnt, others };
}

export function shapeOfSubject({ experts, topK, expertBytes }: EvaluationSubject): ModelShape {
  return { experts, topK, expertBytes };
}

/** The hash is the device's word: one that tells another shape under it is not believed. */
function whyNotOfShape(device: Device, { moeLayers, experts, topK }: EvaluationSubject): Frozen | null {
  const capacities = device.info!.limits!.maxCapacities;
  const model = device.info!.model!;
  if (capacities.length === moeLayers && model.experts === experts && model.topK === topK && capacities.every((capacity) => capacity <= experts)) return null;
  return { why: 'shape', reason: `its telemetry is not believed: under the learner's model it tells of ${capacities.length} layers and top ${model.topK} of ${model.experts} experts, the model has ${moeLayers} and top ${topK} of ${experts}` };
}

/** Priors by class, the classes that cannot tell yet what misses cost, and each device's posterior under its class's, written into what is known of it. */
export function withPriors(learnt: readonly Learnt[]): { learnt: Learnt[]; priors: Map<string, SpeedPrior>; unclear: Set<string> } {
  const classes = new Map<string, DeviceKnowledge[]>();
  for (const { knowledge } of learnt) {
    if (knowledge.quarantine) continue;
    const members = classes.get(knowledge.deviceClass);
    if (members) members.push(knowledge);
    else classes.set(knowledge.deviceClass, [knowledge]);
  }
  const priors = new Map<string, SpeedPrior>();
  const unclear = new Set<string>();
  for (const [name, members] of classes) {
    const evidence = members.map(({ speed }) => evidenceOf(speed));
    priors.set(name, fitPrior(evidence));
    if (members.length >= LEAST_CLASS && readingUncertainty(evidence) > KNOWN_WELL) unclear.add(name);
  }
  return {
    priors, unclear,
    learnt: learnt.map((one) => {
      const prior = priors.get(one.knowledge.deviceClass) ?? VAGUE_PRIOR;
      const { speed } = one.knowledge;
      if (!speed && prior.devices === 0) return one;
      const evidence = evidenceOf(speed);
      const read = { readNs: speed?.readNs ?? 0, readBytes: speed?.readBytes ?? 0 };
      return { ...one, knowledge: { ...one.knowledge, speed: speedMessage(evidence, prior, posterior(evidence, prior), read) } };
    }),
  };
}

export interface Proposing {
  surface: QualitySurface;
  subject: EvaluationSubject;
  priors: ReadonlyMap<string, SpeedPrior>;
  /** classes of which some devices explore */
  unclear: ReadonlySet<string>;
  levels: readonly number[];
  budget: QualityBudget;
  budgetRules: readonly BudgetRule[];
  nowMs: number;
}

export interface FleetProposal { proposals: Proposal[]; knowledge: DeviceKnowledge[]; chosen: Scored[]; frozen: FrozenReason[] }

export function proposeAll(learnt: readonly Learnt[], { surface, subject, priors, unclear, levels, budget, budgetRules, nowMs }: Proposing): FleetProposal {
  const shape = shapeOfSubject(subject);
  const textHashes = subject.domains.map(({ textHash }) => textHash);
  const ratios = layerRatiosByClass(learnt.map((one) => one.knowledge), surface, shape);
  const made = learnt.map(({ device, knowledge, at }) => {
    const prior = priors.get(knowledge.deviceClass) ?? VAGUE_PRIOR;
    return proposeFor(device, knowledge, at, {
      surface, modelHash: subject.modelHash, textHashes, shape, levels, prior, layerRatios: ratios.get(knowledge.deviceClass) ?? shape.expertBytes.map(() => 1), budget: budgetFor(device, budgetRules, budget), explore: unclear.has(knowledge.deviceClass) && explores(knowledge), nowMs,
    });
  });
  return { proposals: made.map((one) => one.proposal), knowledge: made.map((one) => one.knowledge), chosen: made.flatMap((one) => one.chosen ?? []), frozen: made.flatMap((one) => one.frozen ?? []) };
}

/** One device in twenty of a class that cannot tell yet what misses cost, until it can. */
const EXPLORERS = 20;
const LEAST_CLASS = 10;
const KNOWN_WELL = 0.5;
const EXPLORING_WINDOWS = 12;

function explores({ deviceId, speed }: DeviceKnowledge): boolean {
  return Number(speed?.windows ?? 0n) < EXPLORING_WINDOWS && hash(deviceId) % EXPLORERS === 0;
}

/** 32-bit FNV-1a: which devices explore is the same at every run. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) value = Math.imul(value ^ text.charCodeAt(at), 0x01000193) >>> 0;
  return value;
}

/** Distinct capacities that are measured exactly; beyond, even levels across their range are, and the rest is read off between. */
const MOST_EXACT = 6;
const EVEN_LEVELS = 5;

/** The capacities to walk along, those of most devices first. */
export function wantedCapacities(learnt: readonly Learnt[], { topK, moeLayers }: EvaluationSubject): number[][] {
  const distinct = mostFrequentFirst(learnt.map(({ at }) => at.capacities).filter(({ length }) => length > 0), sameCapacities);
  if (distinct.length <= MOST_EXACT) return distinct.map((capacities) => [...capacities]);
  const lowest = Math.max(topK, Math.floor(Math.min(...distinct.map(mean))));
  const highest = Math.ceil(Math.max(...distinct.map(mean)));
  const levels = Array.from({ length: EVEN_LEVELS }, (_, i) => Math.round(lowest + ((highest - lowest) * i) / (EVEN_LEVELS - 1)));
  return [...new Set(levels)].map((capacity) => new Array<number>(moeLayers).fill(capacity));
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

