/** One model's part of a run: its surfaces, its devices, and the engine, which is opened where something is missing. */
import type { Device, DeviceKnowledge } from '@moefleet/proto';
import { measuredLambdas, nextPoint } from './budget-walk';
import type { EvaluationPoint, EvaluationSubject, Evaluator } from './evaluator';
import { type FleetProposal, shapeOfSubject, wantedCapacities } from './fleet-learning';
import { FleetSight, type SurfaceSoFar } from './fleet-sight';
import type { LearnerJobParts } from './learner-job';
import { emptySurface, type MeasuredSurface, toDomain, whyUnusable } from './measured-surface';
import { type FrozenReason, QualitySurface, sameSetting, type Setting, settingText } from './model';
import { mostFrequentFirst } from './most-frequent';
import { capacityText } from './proposal';
import { loosestBudget } from './quality-budget';
import { SurfaceMeasurement } from './surface-measurement';

export interface ModelResult {
  proposed: number;
  measuredPoints: number;
  /** empty where nothing changed */
  rolloutId: string;
  frozen: FrozenReason[];
  held: number;
  /** some of them, for the log */
  quarantined: string[];
}

/** Settings about to be proposed that are measured exactly first, in one run. */
const MOST_CHECKED = 24;
/** Measuring exactly may change the choice, which is then measured in turn. */
const CHECK_ROUNDS = 3;
const MOST_NAMED = 20;

export class ModelRun implements SurfaceSoFar {
  private readonly fleet: FleetSight;
  private surfaces: MeasuredSurface[] = [];
  private evaluator: Evaluator | null = null;
  private measurement: SurfaceMeasurement | null = null;
  private wanted: readonly number[][] = [];
  private toMeasureAnew: readonly Setting[] = [];

  /** `lookAgain`: at the devices of all models; called after each measurement. */
  constructor(
    private readonly parts: LearnerJobParts, private readonly subject: EvaluationSubject, private readonly oneOfSeveral: boolean,
    private readonly lookAgain: () => Promise<void>, private readonly signal: AbortSignal,
  ) {
    this.fleet = new FleetSight(parts, subject, signal);
  }

  get name(): string {
    return this.subject.modelName;
  }

  /** What was measured before, and what the devices' newest frames add to what is known of them. */
  async begin(devices: readonly Device[], knowledge: readonly DeviceKnowledge[], nowMs: number): Promise<void> {
    this.fleet.open(devices, knowledge, nowMs);
    this.wanted = wantedCapacities(this.fleet.learnt, this.subject);
    if (this.wanted.length > 0) await this.load();
    this.toMeasureAnew = this.fleet.toMeasureAnew().slice(0, MOST_CHECKED);
    await this.fleet.judge(this);
  }

  /** Whichever model is measured meanwhile. */
  async look(devices: readonly Device[], nowMs: number): Promise<void> {
    this.fleet.look(devices, nowMs);
    await this.fleet.judge(this);
  }

  async learn(): Promise<ModelResult> {
    const { parts, fleet, wanted } = this;
    try {
      await this.anew();
      await this.walk();
      const made = await this.checked();
      parts.report('proposing', wanted.length, wanted.length);
      await fleet.store(made.knowledge);
      const proposals = [...made.proposals, ...fleet.others.map(({ proposal }) => proposal)];
      const rolloutId = proposals.length > 0 ? await parts.registry.propose(proposals, this.signal) : '';
      return {
        proposed: proposals.filter(({ proposed }) => proposed).length, measuredPoints: this.measuredPoints, rolloutId,
        frozen: [...made.frozen, ...fleet.others.map(({ why }) => why)], held: made.knowledge.filter(({ drift }) => drift?.hold).length,
        quarantined: made.knowledge.flatMap(({ deviceId, quarantine }) => (quarantine ? [`${deviceId}: ${quarantine.reason}`] : [])).slice(0, MOST_NAMED),
      };
    } finally {
      await this.evaluator?.close();
    }
  }

  surface(): QualitySurface {
    return new QualitySurface(this.surfaces.map((one) => toDomain(one, this.parts.routings)), shapeOfSubject(this.subject));
  }

  /** Capacities that all layers share, of which every domain has been measured at λ 0; ascending. */
  evenLevels(): number[] {
    const even = new Set(this.surfaces[0]?.points.filter(({ lambda, capacities }) => lambda === 0 && capacities.every((one) => one === capacities[0])).map(({ capacities }) => capacities[0]!));
    return [...even].sort((a, b) => a - b);
  }

  private get measuredPoints(): number {
    return this.measurement?.measuredPoints ?? 0;
  }

  /** With the same texts, tokens, windows and engine. */
  private async load(): Promise<void> {
    const { parts: { registry, log, tokens }, subject } = this;
    this.surfaces = await Promise.all(subject.domains.map(async (domain) => {
      const stored = await registry.getSurface(subject.modelHash, domain.textHash, this.signal);
      const reason = stored && whyUnusable(stored, subject, domain, tokens);
      if (reason) log.warn({ model: subject.modelName, domain: domain.name, reason }, 'stored surface set aside, measuring anew');
      return stored && !reason ? { ...stored, domain: domain.name } : emptySurface(subject, domain, tokens);
    }));
  }

  /** Settings as they are, where they were read off between points. */
  private async anew(): Promise<void> {
    const some = this.toMeasureAnew;
    for (const [index, setting] of some.entries()) await this.measure(setting, ' (devices lose more there than was measured)', index, some.length);
    if (some.length > 0) await this.fleet.measuredAnew(some, this);
  }

  private async walk(): Promise<void> {
    const { wanted, parts, subject } = this;
    const budget = loosestBudget(parts.budgetRules, parts.budget);
    for (const [index, capacities] of wanted.entries()) {
      const limits = { capacities, shape: shapeOfSubject(subject), routings: parts.routings, budget };
      const before = this.measuredPoints;
      for (;;) {
        const point = nextPoint(this.surface(), measuredLambdas(this.surfaces), limits);
        if (!point) break;
        await this.measure({ ...point, capacities }, wanted.length > 1 ? ` (${index + 1} of ${wanted.length})` : '', index, wanted.length);
        await this.lookAgain();
      }
      if (this.measuredPoints > before) parts.log.info({ model: subject.modelName, capacities, points: this.measuredPoints - before }, 'capacity measured');
    }
  }

  /** Proposals of which the most frequent settings have been measured as they are, not read off between points. */
  private async checked(): Promise<FleetProposal> {
    let made = this.fleet.propose(this);
    for (let round = 0, left = MOST_CHECKED; round < CHECK_ROUNDS; round += 1) {
      const missing = unmeasured(made).slice(0, left);
      if (missing.length === 0) break;
      left -= missing.length;
      for (const [index, setting] of missing.entries()) await this.measure(setting, ' (about to be proposed)', index, missing.length);
      await this.lookAgain();
      made = this.fleet.propose(this);
    }
    return made;
  }

  private async measure(point: EvaluationPoint, where: string, done: number, total: number): Promise<void> {
    const of = this.oneOfSeveral ? ` of ${this.name}` : '';
    this.report = (fraction, one) => this.parts.report(
      `measuring ${settingText(one, this.subject)} at capacity ${capacityText(one.capacities)}${of}${where}: ${Math.floor(fraction * 100)}%, ${this.measuredPoints} points measured`, done, total);
    await (await this.opened()).measure(point);
  }

  private report: (fraction: number, point: EvaluationPoint) => void = () => {};

  private async opened(): Promise<SurfaceMeasurement> {
    if (this.measurement) return this.measurement;
    this.evaluator = await this.parts.openEvaluator(this.subject, this.signal);
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
