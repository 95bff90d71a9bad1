/**
 * One run of the learner: which devices run the model, what their limits allow, what of the surface is missing, what
 * to propose. It may be run twice, stopped anywhere and started elsewhere: each point is stored as soon as it is
 * measured, and proposals follow from the surface alone.
 */
import type { Device, Proposal, QualitySurface } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { WINDOW_TOKENS } from './config';
import { deviceCapacities } from './device-capacities';
import type { EvaluationSubject, Evaluator } from './evaluator';
import { nextPoint } from './grid-walk';
import { proposeConfig } from './proposal';
import { emptySurface, pointsAt, sameCapacities } from './quality-surface';
import { SurfaceMeasurement } from './surface-measurement';

/** The registry, as far as a run needs it. */
export interface LearnerRegistry {
  listLearnable(signal: AbortSignal): Promise<Device[]>;
  getSurface(modelHash: string, textHash: string, signal: AbortSignal): Promise<QualitySurface | null>;
  putSurface(surface: QualitySurface, signal: AbortSignal): Promise<void>;
  propose(proposals: Proposal[], signal: AbortSignal): Promise<string>;
}

export interface LearnerJobParts {
  registry: LearnerRegistry;
  /** which model and text this learner measures */
  identify(signal: AbortSignal): Promise<EvaluationSubject>;
  openEvaluator(signal: AbortSignal): Promise<Evaluator>;
  /** what it does now; empty when it does nothing */
  report(activity: string, done: number, total: number): void;
  log: Logger;
  tokens: number;
  budgetNats: number;
  nowMs(): number;
}

export interface LearnerJobResult { devices: number; proposed: number; measuredPoints: number; rolloutId: string; }

export async function runLearnerJob(parts: LearnerJobParts, signal: AbortSignal): Promise<LearnerJobResult> {
  const { registry, report, log } = parts;
  try {
    report('reading which devices there are', 0, 0);
    const devices = await registry.listLearnable(signal);
    const subject = await parts.identify(signal);
    const wanted = wantedCapacities(devices, subject);
    const stored = wanted.length > 0 ? await storedSurface(parts, subject, signal) : null;
    const { surface, measuredPoints } = await complete(parts, subject, stored, wanted, signal);
    const proposals = devices.map((device) => proposeConfig(surface ?? noSurface(parts, subject), device, { nats: parts.budgetNats }, parts.nowMs()));
    report('proposing', wanted.length, wanted.length);
    const rolloutId = proposals.length > 0 ? await registry.propose(proposals, signal) : '';
    const proposed = proposals.filter((proposal) => proposal.proposed).length;
    log.info({ devices: devices.length, proposed, measuredPoints, rolloutId }, 'learner run done');
    return { devices: devices.length, proposed, measuredPoints, rolloutId };
  } finally {
    report('', 0, 0);
  }
}

/** The capacities that devices with this model are learned about at, each once, those of most devices first. */
export function wantedCapacities(devices: readonly Device[], subject: EvaluationSubject): number[][] {
  const counted: { capacities: number[]; devices: number }[] = [];
  for (const device of devices) {
    const capacities = [...deviceCapacities(device).capacities];
    const fits = capacities.length === subject.moeLayers && capacities.every((capacity) => capacity >= subject.topK && capacity <= subject.experts);
    if (device.info?.model?.hash !== subject.modelHash || !fits) continue;
    const known = counted.find((one) => sameCapacities(one.capacities, capacities));
    if (known) known.devices += 1;
    else counted.push({ capacities, devices: 1 });
  }
  return counted.sort((a, b) => b.devices - a.devices).map((one) => one.capacities);
}

/** What was measured before with the same text, tokens and windows. */
async function storedSurface(parts: LearnerJobParts, subject: EvaluationSubject, signal: AbortSignal): Promise<QualitySurface | null> {
  const stored = await parts.registry.getSurface(subject.modelHash, subject.textHash, signal);
  if (!stored) return null;
  if (stored.tokens === parts.tokens && stored.context === WINDOW_TOKENS) return stored;
  parts.log.info({ storedTokens: stored.tokens, tokens: parts.tokens }, 'stored surface was measured on another part of the text, measuring anew');
  return null;
}

function noSurface(parts: LearnerJobParts, subject: EvaluationSubject): QualitySurface {
  return emptySurface({ ...subject, tokens: parts.tokens, context: WINDOW_TOKENS });
}

/** Measures what is missing; opens the engine only where something is. */
async function complete(
  parts: LearnerJobParts, subject: EvaluationSubject, stored: QualitySurface | null, wanted: readonly number[][], signal: AbortSignal,
): Promise<{ surface: QualitySurface | null; measuredPoints: number }> {
  const { experts, topK } = subject;
  const missing = wanted.filter((capacities) =>
    nextPoint(stored ? pointsAt(stored, capacities) : [], { capacities, experts, topK, budgetNats: parts.budgetNats }));
  if (missing.length === 0) return { surface: stored, measuredPoints: 0 };

  let surface = stored ?? noSurface(parts, subject);
  let measuredPoints = 0;
  const evaluator = await parts.openEvaluator(signal);
  try {
    // The files may have been replaced since they were identified.
    if (evaluator.subject.modelHash !== subject.modelHash || evaluator.subject.textHash !== subject.textHash) {
      throw new Error('model or text changed while the run began; the next run takes the new ones');
    }
    const measurement = new SurfaceMeasurement(evaluator);
    for (const [index, capacities] of missing.entries()) {
      const where = `capacity ${textOf(capacities)}${missing.length > 1 ? ` (${index + 1} of ${missing.length})` : ''}`;
      surface = await measurement.measure(surface, {
        capacities, budgetNats: parts.budgetNats, signal,
        onProgress: ({ lambda, topJ }, fraction) => parts.report(
          `measuring λ ${lambda}${lambda > 0 ? ` topJ ${topJ}` : ''} at ${where}: ${Math.floor(fraction * 100)}%, ${measuredPoints} points measured`, index, missing.length),
        onPoint: async (next) => {
          measuredPoints += 1;
          await parts.registry.putSurface(next, signal);
        },
      });
      parts.log.info({ capacities, points: pointsAt(surface, capacities).length }, 'capacity measured');
    }
  } finally {
    await evaluator.close();
  }
  return { surface, measuredPoints };
}

function textOf(capacities: readonly number[]): string {
  const [low, high] = [Math.min(...capacities), Math.max(...capacities)];
  return low === high ? String(low) : `${low}-${high}`;
}
