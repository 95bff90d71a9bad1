/**
 * How fast a device decodes, given how much its misses make it read:
 *
 *   ms per token = compute + reading x MiB missed per token
 *
 * where `reading` is what of a read's time is not hidden behind compute or other reads. A window of telemetry tells the
 * sum, and, where the agent counted how long its compute thread stood still, each term by itself. Both are learnt by
 * Bayesian linear regression in information form, one recursive least-squares step per window, forgotten slowly. Noise is
 * relative to what is predicted, and heavy-tailed: a window counts by its weight under Student's t with four degrees of
 * freedom, so that one pause of the device does not move the model.
 *
 * A device class x model shares a prior, found by empirical Bayes (`fitPrior`, expectation-maximisation over the devices'
 * own evidence): a new device begins with it, and its own windows outweigh it as they come.
 *
 * Drift is told by Page-Hinkley on the standardised residuals of each term: the device then forgets most of its evidence.
 */
import { inverse, Matrix } from 'ml-matrix';
import { CALM, pageHinkley, type PageHinkley } from './page-hinkley';
import { MIB } from './setting';
import type { TelemetryWindow } from './telemetry-window';

/** compute in ms per token, reading in ms per MiB */
export type Pair = readonly [number, number];

/** Which term has moved: compute (throttling, a cooler device), reading (worn or slower flash), or the sum, unknown which. */
export type SpeedTerm = 'compute' | 'reading' | 'speed';
export interface Drift { readonly cause: SpeedTerm; readonly slower: boolean; /** the window it was seen in, counted from 1 */ readonly window: number }

/** What one device's windows have told; plain data, to be stored as it is. */
export interface SpeedEvidence {
  /** precision matrix of (compute, reading) without the prior: [0][0], [0][1] = [1][0], [1][1] */
  readonly information: readonly [number, number, number];
  /** precision matrix times estimate */
  readonly weighted: Pair;
  /** how far the class's prior counts: 1, and less after drift, as the device is then not what was thought */
  readonly trust: number;
  /** variance of a window's relative residual */
  readonly noise: number;
  readonly windows: number;
  readonly tokens: number;
  readonly alarms: { readonly [cause in SpeedTerm]: PageHinkley };
  readonly drifts: number;
  readonly lastDrift: Drift | null;
  /** smoothed, of recent windows */
  readonly observed: { readonly tokensPerSecond: number; readonly missMibPerToken: number } | null;
}

export interface SpeedPrior {
  readonly mean: Pair;
  readonly sd: Pair;
  /** devices behind it */
  readonly devices: number;
}

export interface SpeedPosterior { readonly mean: Pair; /** [0][0], [0][1] = [1][0], [1][1] */ readonly covariance: readonly [number, number, number] }

export interface SpeedPrediction {
  readonly tokensPerSecond: number;
  /** standard deviation of the mean speed, not of a single window */
  readonly sd: number;
  readonly msPerToken: number;
  readonly msSd: number;
}

/** For a class of which nothing is known: any device from a phone to a workstation is within it. */
export const VAGUE_PRIOR: SpeedPrior = { mean: [60, 2], sd: [300, 20], devices: 0 };

export const NO_EVIDENCE: SpeedEvidence = {
  information: [0, 0, 0], weighted: [0, 0], trust: 1, noise: 0.01, windows: 0, tokens: 0,
  alarms: { compute: CALM, reading: CALM, speed: CALM }, drifts: 0, lastDrift: null, observed: null,
};

const T_FREEDOM = 4;
/** Per window; evidence is worth half after 70. */
const FORGETTING = 0.99;
/** What is left of the evidence and of the prior's weight after drift: the new state is told by the windows to come. */
const AFTER_DRIFT = 0.02;
const LEAST_TRUST = 1e-4;
/** Windows of fewer tokens are noisier. */
const FULL_TOKENS = 128;
const LEAST_NOISE = 0.01 ** 2;
const MOST_NOISE = 0.5 ** 2;
/** How fast the noise is learnt: over about 30 windows, faster at first. */
const NOISE_WINDOWS = 30;
const OBSERVED_RATE = 0.3;
const LEAST = 1e-6;
/** Evidence of one kind of window alone has a singular matrix, which rounding must not make negative. */
const JITTER = 1 + 1e-12;

/** The evidence with one window more. */
export function observe(evidence: SpeedEvidence, window: TelemetryWindow, prior: SpeedPrior): SpeedEvidence {
  const msPerToken = window.decodeNs / 1e6 / window.tokens;
  const mib = window.missBytes / MIB / window.tokens;
  const stall = window.stallNsPerByte === null ? null : (window.stallNsPerByte / 1e6) * MIB;
  // Time that the stalls do not explain is compute; where they explain more than there was, they are not decode's.
  const compute = stall === null ? msPerToken : msPerToken - stall * mib;
  const apart = stall !== null && compute > 0;
  const share = Math.min(window.tokens / FULL_TOKENS, 1);
  const terms: Term[] = apart
    ? [{ cause: 'compute', features: [1, 0], value: compute, scale: msPerToken }, { cause: 'reading', features: [0, 1], value: stall, scale: stall }]
    : [{ cause: 'speed', features: [1, mib], value: msPerToken, scale: msPerToken }];

  let next = forget(evidence, FORGETTING);
  for (const term of terms) next = observeTerm(next, term, share, prior);
  const seen = { tokensPerSecond: 1000 / msPerToken, missMibPerToken: mib };
  const before = next.drifts > evidence.drifts ? null : next.observed;
  return {
    ...next, windows: next.windows + 1, tokens: next.tokens + window.tokens,
    observed: before === null ? seen : {
      tokensPerSecond: before.tokensPerSecond + OBSERVED_RATE * (seen.tokensPerSecond - before.tokensPerSecond),
      missMibPerToken: before.missMibPerToken + OBSERVED_RATE * (seen.missMibPerToken - before.missMibPerToken),
    },
  };
}

interface Term { cause: SpeedTerm; features: Pair; value: number; /** what noise is relative to */ scale: number }

function observeTerm(evidence: SpeedEvidence, { cause, features, value, scale }: Term, share: number, prior: SpeedPrior): SpeedEvidence {
  const { mean, covariance } = posterior(evidence, prior);
  const predicted = features[0] * mean[0] + features[1] * mean[1];
  const residual = value - predicted;
  const uncertainty = quadratic(covariance, features);
  const unit = Math.max(Math.min(Math.abs(scale), Math.max(Math.abs(predicted), LEAST) * 4), LEAST) ** 2;
  const noise = (evidence.noise / share) * unit;
  const standard = residual / Math.sqrt(noise + uncertainty);
  const weight = (T_FREEDOM + 1) / (T_FREEDOM + standard ** 2);

  const alarm = pageHinkley(evidence.alarms[cause], standard);
  const drift: Drift | null = alarm.moved === 0 ? null : { cause, slower: alarm.moved > 0, window: evidence.windows + 1 };
  const kept = drift ? forget(evidence, AFTER_DRIFT) : evidence;
  const precision = (drift ? 1 : weight) / noise;
  const rate = 1 / Math.min(NOISE_WINDOWS, evidence.windows + 8);
  // What the parameters do not know is no noise.
  const seen = Math.max(weight * residual ** 2 - uncertainty, 0) / unit * share;
  const [aa, ab, bb] = kept.information;
  return {
    ...kept,
    information: [aa + precision * features[0] ** 2, ab + precision * features[0] * features[1], bb + precision * features[1] ** 2],
    weighted: [kept.weighted[0] + precision * features[0] * value, kept.weighted[1] + precision * features[1] * value],
    trust: drift ? Math.max(kept.trust * AFTER_DRIFT, LEAST_TRUST) : kept.trust,
    noise: drift ? kept.noise : Math.min(Math.max(evidence.noise + rate * (seen - evidence.noise), LEAST_NOISE), MOST_NOISE),
    alarms: drift ? { compute: CALM, reading: CALM, speed: CALM } : { ...evidence.alarms, [cause]: alarm.state },
    drifts: kept.drifts + (drift ? 1 : 0),
    lastDrift: drift ?? kept.lastDrift,
  };
}

function forget(evidence: SpeedEvidence, by: number): SpeedEvidence {
  const [aa, ab, bb] = evidence.information;
  return { ...evidence, information: [aa * by, ab * by, bb * by], weighted: [evidence.weighted[0] * by, evidence.weighted[1] * by] };
}

/** What the device's own evidence and its class's prior say together. */
export function posterior(evidence: SpeedEvidence, prior: SpeedPrior): SpeedPosterior {
  const [aa, ab, bb] = evidence.information;
  const [pa, pb] = [evidence.trust / prior.sd[0] ** 2, evidence.trust / prior.sd[1] ** 2];
  const covariance = inverse(new Matrix([[aa * JITTER + pa, ab], [ab, bb * JITTER + pb]]));
  const told = Matrix.columnVector([evidence.weighted[0] + pa * prior.mean[0], evidence.weighted[1] + pb * prior.mean[1]]);
  const mean = covariance.mmul(told);
  return notNegative([mean.get(0, 0), mean.get(1, 0)], [covariance.get(0, 0), covariance.get(0, 1), covariance.get(1, 1)]);
}

/** No time is negative. A term that comes out so is held at 0, and the other becomes what it is given that. */
function notNegative([compute, reading]: Pair, covariance: SpeedPosterior['covariance']): SpeedPosterior {
  const [aa, ab, bb] = covariance;
  if (reading < 0) return { mean: [Math.max(compute - (ab / bb) * reading, LEAST), 0], covariance };
  if (compute < LEAST) return { mean: [LEAST, Math.max(reading + (ab / aa) * (LEAST - compute), 0)], covariance };
  return { mean: [compute, reading], covariance };
}

/** `missSd`: relative standard deviation of `missBytesPerToken`. */
export function predictSpeed({ mean, covariance }: SpeedPosterior, missBytesPerToken: number, missSd = 0): SpeedPrediction {
  const features: Pair = [1, missBytesPerToken / MIB];
  const msPerToken = features[0] * mean[0] + features[1] * mean[1];
  const msSd = Math.hypot(Math.sqrt(Math.max(quadratic(covariance, features), 0)), features[1] * mean[1] * missSd);
  const tokensPerSecond = 1000 / msPerToken;
  return { tokensPerSecond, sd: tokensPerSecond * (msSd / msPerToken), msPerToken, msSd };
}

function quadratic([aa, ab, bb]: readonly [number, number, number], [x, y]: Pair): number {
  return aa * x * x + 2 * ab * x * y + bb * y * y;
}

/** Devices of one class are never taken to be more alike than this, relative to their mean. */
const LEAST_SPREAD = 0.05;
const EM_STEPS = 12;
/** Hyperparameters need no more devices than these. */
const MOST_DEVICES = 256;
/** Weight of `base`, in devices. */
const BASE_DEVICES = 0.5;

/**
 * The prior of a class from its devices' evidence. Devices far from the others count less (Student's t again), so that a
 * few that lie do not move it; with few devices it stays near `base`.
 */
export function fitPrior(devices: readonly SpeedEvidence[], base: SpeedPrior = VAGUE_PRIOR): SpeedPrior {
  const telling = devices.filter(({ windows }) => windows > 0).slice(0, MOST_DEVICES);
  if (telling.length === 0) return base;
  let prior = pooled(telling, base);
  for (let step = 0; step < EM_STEPS; step += 1) {
    // How far a device trusts its class is its own affair.
    const all = telling.map((evidence) => posterior({ ...evidence, trust: 1 }, prior));
    const mean: [number, number] = [0, 0];
    const sd: [number, number] = [0, 0];
    for (const term of [0, 1] as const) {
      const spread = prior.sd[term] ** 2;
      const variance = (one: SpeedPosterior) => one.covariance[term === 0 ? 0 : 2];
      // At the first step the middle of the devices stands in for a mean that is not known yet.
      const centre = step === 0 ? median(all.map((one) => one.mean[term])) : prior.mean[term];
      const weights = all.map((one) => (T_FREEDOM + 1) / (T_FREEDOM + (one.mean[term] - centre) ** 2 / Math.max(spread, LEAST)));
      // A device that tells nothing of the term has the prior's mean and would only slow the steps.
      const own = all.map((one, i) => weights[i]! * Math.max(1 - variance(one) / spread, 1e-3));
      const baseWeight = BASE_DEVICES * (spread / (spread + base.sd[term] ** 2));
      const total = own.reduce((sum, weight) => sum + weight, baseWeight);
      mean[term] = all.reduce((sum, one, i) => sum + own[i]! * one.mean[term], baseWeight * base.mean[term]) / total;
      const squares = all.reduce((sum, one, i) => sum + weights[i]! * ((one.mean[term] - mean[term]) ** 2 + variance(one)), 0) + BASE_DEVICES * looseness(base, term, mean[term]);
      sd[term] = Math.max(Math.sqrt(squares / (weights.reduce((sum, weight) => sum + weight, 0) + BASE_DEVICES)), LEAST_SPREAD * Math.abs(mean[term]), LEAST);
    }
    prior = { mean, sd, devices: telling.length };
  }
  return prior;
}

/**
 * How unsure a class is of what reading costs, all its evidence taken together: standard deviation against the value. Above
 * one half its devices have shown too few different miss rates to tell reading from compute.
 */
export function readingUncertainty(devices: readonly SpeedEvidence[], base: SpeedPrior = VAGUE_PRIOR): number {
  const sum = devices.reduce<SpeedEvidence>((all, { information: [aa, ab, bb], weighted: [a, b] }) => ({
    ...all, information: [all.information[0] + aa, all.information[1] + ab, all.information[2] + bb], weighted: [all.weighted[0] + a, all.weighted[1] + b],
  }), NO_EVIDENCE);
  const { mean, covariance } = posterior(sum, base);
  return Math.sqrt(covariance[2]) / Math.max(mean[1], LEAST);
}

/** Where the steps begin: all devices taken for one, each with the same say, and others for up to half as different. */
function pooled(devices: readonly SpeedEvidence[], base: SpeedPrior): SpeedPrior {
  const sum = devices.reduce<SpeedEvidence>((all, one) => {
    const by = 1 / Math.max(one.information[0] * base.sd[0] ** 2 + one.information[2] * base.sd[1] ** 2, 1);
    const [aa, ab, bb] = one.information.map((value) => value * by) as [number, number, number];
    return {
      ...all, information: [all.information[0] + aa, all.information[1] + ab, all.information[2] + bb],
      weighted: [all.weighted[0] + by * one.weighted[0], all.weighted[1] + by * one.weighted[1]],
    };
  }, { ...NO_EVIDENCE });
  const { mean } = posterior(forget(sum, 1e4), base);
  return { mean, sd: [Math.max(mean[0], LEAST) / 2, Math.max(mean[1], LEAST) / 2], devices: devices.length };
}

/** Before there are many devices, another may differ from them by half of what they are. */
function looseness(base: SpeedPrior, term: 0 | 1, mean: number): number {
  return Math.min(base.sd[term], Math.max(Math.abs(mean), LEAST)) ** 2;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
