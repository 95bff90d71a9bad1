/**
 * The devices of one model as a run sees them: looked at when the run begins and again while it measures, so that a device
 * that loses more than was measured has its λ held back within seconds, and what is proposed at the end rests on the newest frames.
 */
import { type Device, DeviceKnowledge } from '@moefleet/proto';
import { judgeDrift, seenUnder } from './drift/drift-sight';
import type { EvaluationSubject } from './evaluator';
import { type FleetProposal, type Learnt, lookAtAll, type NotLearnt, proposeAll, withPriors } from './fleet-learning';
import type { LearnerJobParts } from './learner-job';
import { type QualitySurface, sameSetting, type Setting, type SpeedPrior } from './model';
import { mostFrequentFirst } from './most-frequent';

/** Reports come by several coordinators, whose clocks differ. */
const CLOCKS_MS = 60_000n;
/** Devices that a line of the log names. */
const MOST_NAMED = 20;

/** What of it is measured as the run goes on. */
export interface SurfaceSoFar { surface(): QualitySurface; evenLevels(): number[] }

export class FleetSight {
  learnt: readonly Learnt[] = [];
  /** answers for devices of this model that are not learnt about */
  others: readonly NotLearnt[] = [];
  private priors: ReadonlyMap<string, SpeedPrior> = new Map();
  private unclear: ReadonlySet<string> = new Set();
  /** as the coordinator has it */
  private stored: ReadonlyMap<string, DeviceKnowledge> = new Map();
  private readonly known = new Map<string, DeviceKnowledge>();
  private lookedMs = 0;
  private usedMs = 0n;

  constructor(private readonly parts: LearnerJobParts, private readonly subject: EvaluationSubject, private readonly signal: AbortSignal) {}

  /** What is known and what the newest frames add to it. */
  open(devices: readonly Device[], stored: readonly DeviceKnowledge[], nowMs: number): void {
    this.stored = new Map(stored.map((one) => [one.deviceId, one]));
    for (const [id, knowledge] of this.stored) this.known.set(id, knowledge);
    this.usedMs = stored.reduce((latest, { modelHash, drift }) => (modelHash === this.subject.modelHash && drift && drift.useMs > latest ? drift.useMs : latest), 0n);
    this.look(devices, nowMs);
  }

  /** `devices`: of whichever model. */
  look(devices: readonly Device[], nowMs: number): void {
    this.lookedMs = nowMs;
    const own = devices.filter(({ info }) => info?.model?.hash === this.subject.modelHash);
    const sight = lookAtAll(own, this.known, this.subject, nowMs);
    const { learnt, priors, unclear } = withPriors(sight.learnt);
    Object.assign(this, { others: sight.others, priors, unclear });
    this.take(learnt);
  }

  /** Judges every device's drift; those that lose more than was measured are held back at once, and a measurement is queued. */
  async judge(measured: SurfaceSoFar): Promise<void> {
    const { registry, log } = this.parts;
    const surface = measured.surface();
    const since = this.usedMs > CLOCKS_MS ? this.usedMs - CLOCKS_MS : 0n;
    const bits = await registry.useBits(this.subject.modelHash, since, this.signal);
    for (const { timeMs } of bits.values()) if (timeMs > this.usedMs) this.usedMs = timeMs;
    const before = this.learnt;
    this.take(before.map((one) => ({ ...one, knowledge: { ...one.knowledge, drift: judgeDrift(one.device, one.knowledge, surface, bits.get(one.device.id), this.lookedMs) } })));
    const held = this.learnt.filter(({ knowledge }, i) => { const { hold } = knowledge.drift ?? {}; return hold && hold.sinceMs !== before[i]!.knowledge.drift?.hold?.sinceMs; });
    const freed = this.learnt.filter(({ knowledge }, i) => before[i]!.knowledge.drift?.hold && !knowledge.drift?.hold);
    const moved = this.learnt.filter(({ knowledge }, i) => { const causes = knowledge.drift?.causes ?? []; return causes.length > 0 && causes.join() !== before[i]!.knowledge.drift?.causes.join(); });
    if (moved.length > 0) log.info({ devices: moved.length, drift: told(moved) }, 'routing has drifted');
    if (freed.length > 0) log.info({ devices: freed.map(({ device }) => device.id).slice(0, MOST_NAMED) }, 'λ no longer held back');
    if (held.length > 0) await this.holdBack(held, measured);
  }

  /** Settings that devices lost too much under, most frequent first, to be measured as they are. */
  toMeasureAnew(): Setting[] {
    return mostFrequentFirst(this.learnt.flatMap(({ knowledge }) => { const hold = knowledge.drift?.hold; return hold && !hold.measuredAnew ? [seenUnder(hold)] : []; }), sameSetting);
  }

  /** These have been; whose hold rests on one of them is judged by what was found. */
  async measuredAnew(settings: readonly Setting[], measured: SurfaceSoFar): Promise<void> {
    this.take(this.learnt.map((one) => {
      const { drift } = one.knowledge;
      const hold = drift?.hold;
      return hold && settings.some((setting) => sameSetting(setting, seenUnder(hold))) ? { ...one, knowledge: { ...one.knowledge, drift: { ...drift, hold: { ...hold, measuredAnew: true } } } } : one;
    }));
    await this.judge(measured);
  }

  propose(measured: SurfaceSoFar): FleetProposal {
    const { subject, priors, unclear, parts } = this;
    return proposeAll(this.learnt, { surface: measured.surface(), subject, priors, unclear, levels: measured.evenLevels(), budget: parts.budget, budgetRules: parts.budgetRules, nowMs: this.lookedMs });
  }

  /** What the coordinator does not have yet. */
  async store(knowledge: readonly DeviceKnowledge[]): Promise<void> {
    const changed = knowledge.filter((one) => !same(one, this.stored.get(one.deviceId)));
    if (changed.length > 0) await this.parts.registry.putKnowledge(changed, this.signal);
    this.stored = new Map([...this.stored, ...changed.map((one): [string, DeviceKnowledge] => [one.deviceId, one])]);
  }

  private take(learnt: readonly Learnt[]): void {
    this.learnt = learnt;
    for (const { device, knowledge } of learnt) this.known.set(device.id, knowledge);
  }

  /** Ahead of everything that the run is still to measure. */
  private async holdBack(held: readonly Learnt[], measured: SurfaceSoFar): Promise<void> {
    const { registry, log, queueRun } = this.parts;
    const ids = new Set(held.map(({ device }) => device.id));
    const made = this.propose(measured);
    const chosen = new Map(made.knowledge.filter(({ deviceId }) => ids.has(deviceId)).map((one) => [one.deviceId, one]));
    this.take(this.learnt.map((one) => ({ ...one, knowledge: chosen.get(one.device.id) ?? one.knowledge })));
    await this.store([...chosen.values()]);
    const rolloutId = await registry.propose(made.proposals.filter(({ deviceId }) => ids.has(deviceId)), this.signal);
    queueRun('drift');
    log.warn({ devices: held.length, rolloutId, held: held.slice(0, MOST_NAMED).map(({ device, knowledge }) => `${device.id}: λ at most ${knowledge.drift!.hold!.lambda}, ${knowledge.drift!.hold!.reason}`) }, 'λ held back: more is lost than was measured');
  }
}

function told(learnt: readonly Learnt[]): string[] {
  return learnt.slice(0, MOST_NAMED).map(({ device, knowledge }) => `${device.id}: ${knowledge.drift!.causes.join(', ')}: ${knowledge.drift!.reason}`);
}

function same(a: DeviceKnowledge, b: DeviceKnowledge | undefined): boolean {
  return b !== undefined && Buffer.compare(DeviceKnowledge.encode(a).finish(), DeviceKnowledge.encode(b).finish()) === 0;
}
