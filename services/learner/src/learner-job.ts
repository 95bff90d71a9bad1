/**
 * One run of the learner, for each of its models: what the devices' newest telemetry says, what of the surfaces is missing
 * where the budget runs, what to propose, and whether exactly that has been measured. It may be run twice, stopped anywhere
 * and started elsewhere: each point is stored as soon as it is measured, and the rest follows from what is stored.
 */
import type { Device, DeviceKnowledge, Proposal, Routing } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { UseBits } from './drift/use-bits';
import type { EvaluationSubject, Evaluator } from './evaluator';
import type { NotLearnt } from './fleet-learning';
import type { MeasuredSurface } from './measured-surface';
import type { FrozenReason, QualityBudget } from './model';
import { type ModelResult, ModelRun } from './model-run';
import { noProposal, whyNotMeasured } from './proposal';
import type { BudgetRule } from './quality-budget';

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
  /** which models this learner measures, on which texts */
  identify(signal: AbortSignal): Promise<EvaluationSubject[]>;
  openEvaluator(subject: EvaluationSubject, signal: AbortSignal): Promise<Evaluator>;
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
  /** one for each model that has news */
  rolloutIds: string[];
  /** devices without a proposal, by why */
  frozen: Partial<Record<FrozenReason, number>>;
  /** devices whose λ is held back */
  held: number;
}

/** How often the fleet is looked at while something is measured. */
const LOOK_EVERY_MS = 10_000;

/** One model that cannot be measured does not keep the others from being learned about; the run fails at its end. */
export async function runLearnerJob(parts: LearnerJobParts, signal: AbortSignal): Promise<LearnerJobResult> {
  const { registry, report, log } = parts;
  const results: ModelResult[] = [];
  const failures: unknown[] = [];
  try {
    report('reading which devices there are', 0, 0);
    const subjects = await parts.identify(signal);
    const knowledge = await registry.listKnowledge(signal);
    let devices = await registry.listLearnable(signal);
    let lookedMs = parts.nowMs();
    const lookAgain = async () => {
      if (parts.nowMs() - lookedMs < LOOK_EVERY_MS) return;
      devices = await registry.listLearnable(signal);
      lookedMs = parts.nowMs();
      for (const run of runs) await run.look(devices, lookedMs);
    };
    const runs = subjects.map((subject) => new ModelRun(parts, subject, subjects.length > 1, lookAgain, signal));
    for (const run of runs) await run.begin(devices, knowledge, lookedMs);
    for (const run of runs) {
      await run.learn().then((result) => results.push(result), (error: unknown) => {
        signal.throwIfAborted();
        if (runs.length > 1) log.error({ model: run.name, err: error }, 'this model could not be learned about');
        failures.push(error);
      });
    }
    const strangers = notMeasured(devices, subjects, lookedMs);
    if (strangers.length > 0) await registry.propose(strangers.map(({ proposal }) => proposal), signal);
    if (failures.length > 0) throw failures[0];
    const sum = (count: (result: ModelResult) => number) => results.reduce((total, result) => total + count(result), 0);
    const result = {
      devices: devices.length, proposed: sum(({ proposed }) => proposed), measuredPoints: sum(({ measuredPoints }) => measuredPoints),
      rolloutIds: results.flatMap(({ rolloutId }) => rolloutId || []), held: sum(({ held }) => held),
      frozen: counted([...results.flatMap(({ frozen }) => frozen), ...strangers.map(({ why }) => why)]),
    };
    log.info({ ...result, quarantined: results.flatMap(({ quarantined }) => quarantined) }, 'learner run done');
    return result;
  } finally {
    report('', 0, 0);
  }
}

function notMeasured(devices: readonly Device[], subjects: readonly EvaluationSubject[], nowMs: number): NotLearnt[] {
  const hashes = subjects.map(({ modelHash }) => modelHash);
  return devices.flatMap((device) => {
    const frozen = whyNotMeasured(device, hashes);
    return frozen ? [{ proposal: noProposal(device, frozen.reason, nowMs), why: frozen.why }] : [];
  });
}

function counted(all: readonly FrozenReason[]): Partial<Record<FrozenReason, number>> {
  const counts: Partial<Record<FrozenReason, number>> = {};
  for (const why of all) counts[why] = (counts[why] ?? 0) + 1;
  return counts;
}
