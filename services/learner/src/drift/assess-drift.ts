/**
 * What has changed about a device's routing since its λ was chosen, and what follows from it. Causes are told apart by what
 * each of them alone can do:
 *
 *   model      another model is loaded: nothing learned of the one before holds
 *   workload   what tokens want (the model's own choice) has moved
 *   lambda     what they get has moved away from what they want, while that stands still
 *   lock-in    more and more is swapped and no miss is saved by it: the pull feeds on what it has made resident
 *
 * Whatever the cause: where more softmax mass is lost than on any text that the quality surface was measured on, its losses
 * are no longer known to hold. λ then goes back at once, to where so much less is lost, and the surface is to be measured anew.
 */
import type { Routing } from '@moefleet/proto';
import { strengthText } from '../model';

/** One stretch of decoding, such as between two telemetry frames. */
export interface RoutingWindow {
  /** selected slots */
  readonly slots: number;
  readonly misses: number;
  readonly swaps: number;
}

/** Mean softmax mass lost per routing event, and the tokens it was seen over. */
export interface SeenMassLost { readonly mean: number; readonly tokens: number }
/** Least and most of it over the texts of a surface. */
export interface MeasuredMassLost { readonly least: number; readonly most: number }

export interface DriftInputs {
  readonly routing: Routing;
  /** how far it bends */
  readonly lambda: number;
  readonly modelHash: string;
  /** what the device's λ was chosen for */
  readonly chosenFor: string;
  /** Jensen-Shannon bits per MoE layer beyond chance, see use-bits.ts; empty: not known */
  readonly workloadBits: readonly number[];
  readonly lambdaBits: readonly number[];
  /** mean rise of the routers' entropy in bits; null: not known */
  readonly entropyChange: number | null;
  /** under the present setting, oldest first */
  readonly windows: readonly RoutingWindow[];
  /** under the present setting; null: not known */
  readonly massLost: SeenMassLost | null;
  /** at λ and what else is in force; null: not measured there */
  readonly measuredMassLost: (lambda: number) => MeasuredMassLost | null;
  /** the most that may be lost; null: what was measured at λ */
  readonly massLimit: number | null;
}

export type DriftCause = 'model' | 'workload' | 'lambda' | 'lock-in';

export interface DriftFinding {
  readonly causes: readonly DriftCause[];
  /** λ to run at once; null: as it is */
  readonly backOffTo: number | null;
  /** the surface no longer speaks of what the device does */
  readonly measureAnew: boolean;
  /** of the causes and, where λ is to go back, of that; empty where nothing has changed */
  readonly reason: string;
  /** why λ is to go back; empty where it is not, or for another model alone */
  readonly backOffReason: string;
}

/** Mean over layers, of 2,048 tokens. On the reference model parts of one text are 0.00 to 0.05 apart, code, arithmetic and articles 0.22 to 0.27. */
const WORKLOAD_BITS = 0.1;
/** λ 0.1 to 0.3 with topJ 1, at 12 of 32 experts: 0.01 to 0.06; with topJ 0: 0.08; λ 1: 0.36. */
const LAMBDA_BITS = 0.1;
const ENTROPY_BITS = 0.3;
const LEAST_WINDOWS = 6;
/** Lock-in: swaps have risen by so much of themselves, surely, and misses have not fallen by that. */
const SWAPS_RISEN = 0.15;
const MISSES_FLAT = 0.05;
const SURE = 3;
/** A device's own mean is a little off the texts' for no reason. */
const MASS_SLACK = 0.1;
/** Of the mass lost over 256 tokens, against its mean: 0.06 to 0.12 between stretches of one text on the reference model. */
const MASS_SPREAD = 0.12;
const SPREAD_TOKENS = 256;
const LEAST_MASS_TOKENS = 512;
const LAMBDA_STEP = 0.01;

export function assessDrift(inputs: DriftInputs): DriftFinding {
  const { workloadBits, lambdaBits, entropyChange, modelHash, chosenFor, lambda } = inputs;
  const causes: DriftCause[] = [];
  const reasons: string[] = [];
  const note = (cause: DriftCause, reason: string) => {
    causes.push(cause);
    reasons.push(reason);
  };
  const otherModel = modelHash !== chosenFor;
  if (otherModel) note('model', `model ${modelHash.slice(0, 12)} is loaded, λ was chosen for ${chosenFor.slice(0, 12)}`);
  else {
    const workload = workloadText(workloadBits, entropyChange);
    if (workload) note('workload', workload);
    if (lambda > 0 && mean(lambdaBits) > LAMBDA_BITS) note('lambda', `${strengthText(inputs)} gives tokens other experts than they want: ${mean(lambdaBits).toFixed(3)} bits in the mean of the layers`);
    const locked = lambda > 0 ? lockIn(inputs.windows) : null;
    if (locked) note('lock-in', locked);
  }

  const backOffTo = otherModel ? 0 : backOff(inputs);
  const outside = backOffTo !== null && !otherModel;
  const backOffReason = outside ? outsideText(inputs) : '';
  return { causes, backOffTo, backOffReason, measureAnew: otherModel || outside, reason: [...reasons, backOffReason].filter(Boolean).join('; ') };
}

function outsideText(inputs: DriftInputs): string {
  const { lambda, massLost, measuredMassLost } = inputs;
  return `${massLost!.mean.toFixed(4)} of softmax mass is lost per event, no text that was measured at ${strengthText(inputs)} loses more than ${measuredMassLost(lambda)!.most.toFixed(4)}`;
}

/** Whether a device that lost so much may have, by chance, no more than `most` in the long run. */
export function isWithin({ mean: lost, tokens }: SeenMassLost, most: number): boolean {
  return lost <= most * (1 + MASS_SLACK + SURE * MASS_SPREAD * Math.sqrt(SPREAD_TOKENS / Math.max(tokens, 1)));
}

function workloadText(bits: readonly number[], entropyChange: number | null): string | null {
  const most = Math.max(...bits, 0);
  if (mean(bits) > WORKLOAD_BITS) return `tokens want other experts than before: ${mean(bits).toFixed(3)} bits in the mean of the layers, ${most.toFixed(3)} in layer ${bits.indexOf(most)}`;
  return entropyChange !== null && entropyChange > ENTROPY_BITS ? `the routers' entropy has risen by ${entropyChange.toFixed(2)} bits` : null;
}

/** The highest λ at which the device, losing by the same factor more than the texts, would lose no more than it may. */
function backOff({ lambda, massLost, measuredMassLost, massLimit }: DriftInputs): number | null {
  const here = measuredMassLost(lambda);
  const limit = massLimit ?? here?.most ?? 0;
  if (lambda === 0 || !massLost || massLost.tokens < LEAST_MASS_TOKENS || !here || isWithin(massLost, limit)) return null;
  const factor = massLost.mean / Math.max(here.most, 1e-9);
  for (let lower = lambda - LAMBDA_STEP; lower > 1e-9; lower -= LAMBDA_STEP) {
    const there = measuredMassLost(Math.round(lower * 100) / 100);
    if (there && there.most * factor <= limit * (1 + 1e-9)) return Math.round(lower * 100) / 100;
  }
  return 0;
}

/** Why it is, null where it is not: a straight line through the swap rates rises surely, and the miss rates do not fall. */
function lockIn(windows: readonly RoutingWindow[]): string | null {
  const told = windows.filter(({ slots }) => slots > 0);
  if (told.length < LEAST_WINDOWS) return null;
  const swaps = line(told.map(({ swaps: count, slots }) => count / slots));
  const misses = line(told.map(({ misses: count, slots }) => count / slots));
  const risen = swaps.rise / Math.max(swaps.mean, 1e-6);
  const saved = -misses.rise / Math.max(misses.mean, 1e-6);
  if (risen < SWAPS_RISEN || swaps.rise < SURE * swaps.error || saved > MISSES_FLAT) return null;
  return `over ${told.length} windows swaps have risen by ${(risen * 100).toFixed(0)}% and misses changed by ${(-saved * 100).toFixed(0)}%: the pull holds on to what it has made resident`;
}

/** Least squares over 0..1: the rise from end to end and its standard error. */
function line(values: readonly number[]): { mean: number; rise: number; error: number } {
  const n = values.length;
  const centre = mean(values);
  const at = values.map((_, i) => i / (n - 1) - 0.5);
  const spread = at.reduce((sum, x) => sum + x * x, 0);
  const rise = at.reduce((sum, x, i) => sum + x * (values[i]! - centre), 0) / spread;
  const rest = values.reduce((sum, value, i) => sum + (value - centre - rise * at[i]!) ** 2, 0) / Math.max(n - 2, 1);
  return { mean: centre, rise, error: Math.sqrt(rest / spread) };
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
