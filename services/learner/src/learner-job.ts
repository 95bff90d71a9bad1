/**
 * One run of the learner: what the devices' newest telemetry says, what of the surfaces is missing where the budget runs,
 * what to propose, and whether exactly that has been measured. It may be run twice, stopped anywhere and started
 * elsewhere: each point is stored as soon as it is measured, and the rest follows from what is stored.
 */
import type { Device, DeviceKnowledge, Proposal, Routing } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { measuredLambdas, nextPoint } from './budget-walk';
import type { EvaluationPoint, EvaluationSubject, Evaluator } from './evaluator';
import type { UseBits } from './drift/use-bits';
import { type FleetProposal, shapeOfSubject, wantedCapacities } from './fleet-learning';
import { FleetSight, type SurfaceSoFar } from './fleet-sight';
import { emptySurface, type MeasuredSurface, toDomain, whyUnusable } from './measured-surface';
import { type FrozenReason, type QualityBudget, QualitySurface, sameSetting, type Setting, settingText } from './model';
import { mostFrequentFirst } from './most-frequent';
import { capacityText } from './proposal';
import { type BudgetRule, loosestBudget } from './quality-budget';
import { SurfaceMeasurement } from './surface-measurement';

/** The registry, as far as a run needs it. */
export interface LearnerRegistry {
  listLearnable(signal: AbortSignal): Promise<Device[]>;
  listKnowledge(signal: AbortSignal): Promise<DeviceKnowledge[]>;
  /** of devices with this model that have told since, see use-bits.ts */
  useBits(modelHash: string, sinceMs: bigint, signal: AbortSignal): Promise<ReadonlyMap<string, UseBits>>;
  putKnowledge(devices: readonly DeviceKnowledge[], signal: AbortSignal): Promise<void>;
  getSurface(modelHash: string, textHash: string, signal: AbortSignal): Promise<MeasuredSurface | null>;
  putSurface(surface: MeasuredSurface, signal: AbortSignal): Promise<void>;
  propose(proposals: Proposal[], signal: AbortSignal): Promise<string>;
}

export interface LearnerJobParts {
  registry: LearnerRegistry;
  /** which model and texts this learner measures */
  identify(signal: AbortSignal): Promise<EvaluationSubject>;
  openEvaluator(signal: AbortSignal): Promise<Evaluator>;
  /** what it does now; empty when it does nothing */
  report(activity: string, done: number, total: number): void;
  /** one point of one text, when it has been measured */
  pointMeasured(seconds: number): void;
  /** Another run after this one, unless one for that reason waits. */
  queueRun(reason: string): void;
  log: Logger;
  tokens: number;
  budget: QualityBudget;
  budgetRules: readonly BudgetRule[];
  /** that are measured and chosen from */
  routings: readonly Routing[];
  nowMs(): number;
}

export interface LearnerJobResult {
  devices: number;
  proposed: number;
  measuredPoints: number;
  rolloutId: string;
  /** devices without a proposal, by why */
  frozen: Partial<Record<FrozenReason, number>>;
  /** devices whose λ is held back */
  held: number;
}

/** Settings about to be proposed that are measured exactly first, in one run. */
const MOST_CHECKED = 24;
/** Measuring exactly may change the choice, which is then measured in turn. */
const CHECK_ROUNDS = 3;

export async function runLearnerJob(parts: LearnerJobParts, signal: AbortSignal): Promise<LearnerJobResult> {
  const { registry, report, log } = parts;
  const run = new LearnerRun(parts, signal);
  try {
    report('reading which devices there are', 0, 0);
    const subject = await parts.identify(signal);
    const fleet = new FleetSight(parts, subject, signal);
    await fleet.open();
    const wanted = wantedCapacities(fleet.learnt, subject);
    if (wanted.length > 0) await run.load(subject);
    const anew = fleet.toMeasureAnew();
    await fleet.judge(run);
    await run.anew(anew, fleet);
    await run.walk(wanted, fleet);
    const made = await run.checked(fleet);
    report('proposing', wanted.length, wanted.length);
    const proposals = [...made.proposals, ...fleet.others.map(({ proposal }) => proposal)];
    await fleet.store(made.knowledge);
    const rolloutId = proposals.length > 0 ? await registry.propose(proposals, signal) : '';
    const proposed = proposals.filter((proposal) => proposal.proposed).length;
    log.info({ devices: fleet.devices.length, proposed, measuredPoints: run.measuredPoints, rolloutId, quarantined: quarantined(made.knowledge) }, 'learner run done');
    return {
      devices: fleet.devices.length, proposed, measuredPoints: run.measuredPoints, rolloutId, frozen: counted([...made.frozen, ...fleet.others.map(({ why }) => why)]),
      held: made.knowledge.filter(({ drift }) => drift?.hold).length,
    };
  } finally {
    await run.close();
    report('', 0, 0);
  }
}

function counted(all: readonly FrozenReason[]): Partial<Record<FrozenReason, number>> {
  const counts: Partial<Record<FrozenReason, number>> = {};
  for (const why of all) counts[why] = (counts[why] ?? 0) + 1;
  return counts;
}

/** Some of them, for the log. */
function quarantined(knowledge: readonly DeviceKnowledge[]): string[] {
  return knowledge.flatMap(({ deviceId, quarantine }) => (quarantine ? [`${deviceId}: ${quarantine.reason}`] : [])).slice(0, 20);
}

/** The surfaces of one run, and the engine, which is opened where something is missing. */
class LearnerRun implements SurfaceSoFar {
  private subject: EvaluationSubject | null = null;
  private surfaces: MeasuredSurface[] = [];
  private evaluator: Evaluator | null = null;
  private measurement: SurfaceMeasurement | null = null;

  constructor(private readonly parts: LearnerJobParts, private readonly signal: AbortSignal) {}

  get measuredPoints(): number {
    return this.measurement?.measuredPoints ?? 0;
  }

  /** What was measured before with the same texts, tokens, windows and engine. */
  async load(subject: EvaluationSubject): Promise<void> {
    const { registry, log, tokens } = this.parts;
    this.subject = subject;
    this.surfaces = await Promise.all(subject.domains.map(async (domain) => {
      const stored = await registry.getSurface(subject.modelHash, domain.textHash, this.signal);
      const reason = stored && whyUnusable(stored, subject, domain, tokens);
      if (reason) log.warn({ domain: domain.name, reason }, 'stored surface set aside, measuring anew');
      return stored && !reason ? { ...stored, domain: domain.name } : emptySurface(subject, domain, tokens);
    }));
  }

  surface(): QualitySurface {
    return this.subject ? new QualitySurface(this.surfaces.map((one) => toDomain(one, this.parts.routings)), shapeOfSubject(this.subject)) : new QualitySurface([], { experts: 0, topK: 0, expertBytes: [] });
  }

  /** Capacities that all layers share, of which every domain has been measured at λ 0; ascending. */
  evenLevels(): number[] {
    const even = new Set(this.surfaces[0]?.points.filter(({ lambda, capacities }) => lambda === 0 && capacities.every((one) => one === capacities[0])).map(({ capacities }) => capacities[0]!));
    return [...even].sort((a, b) => a - b);
  }

  /** Settings as they are, where they were read off between points. */
  async anew(settings: readonly Setting[], fleet: FleetSight): Promise<void> {
    const some = settings.slice(0, MOST_CHECKED);
    for (const [index, setting] of some.entries()) await this.measure(setting, ' (devices lose more there than was measured)', index, some.length);
    if (some.length > 0) await fleet.measuredAnew(some, this);
  }

  async walk(wanted: readonly number[][], fleet: FleetSight): Promise<void> {
    const budget = loosestBudget(this.parts.budgetRules, this.parts.budget);
    for (const [index, capacities] of wanted.entries()) {
      const limits = { capacities, shape: shapeOfSubject(this.subject!), routings: this.parts.routings, budget };
      const before = this.measuredPoints;
      for (;;) {
        const point = nextPoint(this.surface(), measuredLambdas(this.surfaces), limits);
        if (!point) break;
        await this.measure({ ...point, capacities }, wanted.length > 1 ? ` (${index + 1} of ${wanted.length})` : '', index, wanted.length);
        await fleet.again(this);
      }
      if (this.measuredPoints > before) this.parts.log.info({ capacities, points: this.measuredPoints - before }, 'capacity measured');
    }
  }

  /** Proposals of which the most frequent settings have been measured as they are, not read off between points. */
  async checked(fleet: FleetSight): Promise<FleetProposal> {
    const propose = () => fleet.propose(this);
    let made = propose();
    for (let round = 0, left = MOST_CHECKED; round < CHECK_ROUNDS; round += 1) {
      const missing = unmeasured(made).slice(0, left);
      if (missing.length === 0) break;
      left -= missing.length;
      for (const [index, setting] of missing.entries()) await this.measure(setting, ' (about to be proposed)', index, missing.length);
      await fleet.again(this);
      made = propose();
    }
    return made;
  }

  async close(): Promise<void> {
    await this.evaluator?.close();
  }

  private async measure(point: EvaluationPoint, where: string, done: number, total: number): Promise<void> {
    this.report = (fraction, one) => this.parts.report(
      `measuring ${settingText(one, this.subject!)} at capacity ${capacityText(one.capacities)}${where}: ${Math.floor(fraction * 100)}%, ${this.measuredPoints} points measured`, done, total);
    await (await this.opened()).measure(point);
  }

  private report: (fraction: number, point: EvaluationPoint) => void = () => {};

  private async opened(): Promise<SurfaceMeasurement> {
    if (this.measurement) return this.measurement;
    this.evaluator = await this.parts.openEvaluator(this.signal);
    // The files may have been replaced since they were identified.
    if (JSON.stringify(this.evaluator.subject) !== JSON.stringify(this.subject)) throw new Error('model or text changed while the run began; the next run takes the new ones');
    this.measurement = new SurfaceMeasurement(this.evaluator, this.surfaces, {
      signal: this.signal, onProgress: (point, fraction) => this.report(fraction, point), onPoint: (surface, seconds) => {
        this.parts.pointMeasured(seconds);
        return this.parts.registry.putSurface(surface, this.signal);
      },
    });
    return this.measurement;
  }
}

/** Those of most devices first. */
function unmeasured({ chosen }: FleetProposal): Setting[] {
  return mostFrequentFirst(chosen.filter(({ quality }) => !quality.measured).map(({ setting }) => setting), sameSetting);
}
