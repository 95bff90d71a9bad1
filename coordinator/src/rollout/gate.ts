/**
 * Gates: what must hold on a device for a rollout to go on, and whether it does. Quality is judged from measurements
 * alone: the device scores a text at its new spec and at lambda 0, and the mean over windows of the difference, with
 * its one-sided 95% bounds by Student's t, is held against the limit. A bound on the wrong side fails, one that
 * straddles the limit is unclear. perplexityRise is held against what the device measured before the change instead, window
 * by window: for another model, it has to read text in the same tokens. What is counted (misses, errors) is exact and compared as it is.
 */
import { InvalidRequestError } from '../errors';
import type { PinField } from '../registry/pin';
import type { Finding, Measured } from '../registry/staged-rollout';

export const METRICS = ['perplexityLoss', 'crossEntropyLoss', 'perplexityRise', 'missRate', 'swapRate', 'errors', 'tokensPerSecond'] as const;
export type Metric = typeof METRICS[number];
export const OPERATORS = ['<=', '>=', '==', '<', '>'] as const;
type Operator = typeof OPERATORS[number];

export interface Gate {
  /** as it was written, without blanks */
  readonly text: string;
  readonly metric: Metric;
  readonly operator: Operator;
  readonly bound: { readonly t: 'constant'; readonly value: number } | { readonly t: 'baseline' };
}

export interface GateInput {
  /** null: not measured */
  readonly measured: Measured | null;
  readonly baseline: Measured | null;
  /** failed requests and engine crashes since the change */
  readonly errors: number;
}

/** Fewer windows say nothing about their spread. */
export const LEAST_WINDOWS = 4;
const MOST_GATES = 20;
/** Metrics that know no baseline, and why. */
const ONLY_NUMBERS: Partial<Record<Metric, string>> = {
  errors: 'errors count from the change on, so compare them with a number', perplexityRise: 'it is the rise over the baseline, so compare it with a number, as in perplexityRise<2%',
};
const FORM = /^([A-Za-z]+)\s*(<=|>=|==|<|>)\s*(baseline|[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(%?)$/;
/** One-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, that of 30, which is on the safe side. */
const T95 = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697];

/** `perplexityLoss<1%,missRate<=baseline,errors==0`; empty: none. Throws InvalidRequestError. */
export function parseGates(text: string): Gate[] {
  const parts = text.split(',').map((part) => part.trim()).filter(Boolean);
  if (parts.length > MOST_GATES) throw new InvalidRequestError('staging.gate', `${parts.length} gates`, `at most ${MOST_GATES}`);
  return parts.map(parseGate);
}

function parseGate(text: string): Gate {
  const [, name, operator, bound, percent] = FORM.exec(text) ?? [];
  const metric = METRICS.find((known) => known === name);
  if (!metric) throw new InvalidRequestError('staging.gate', text, `a gate such as perplexityLoss<1%; metrics: ${METRICS.join(', ')}; operators: ${OPERATORS.join(' ')}; bound: a number, a percentage or baseline`);
  if (bound === 'baseline' && (percent || ONLY_NUMBERS[metric])) throw new InvalidRequestError('staging.gate', text, `a gate: ${ONLY_NUMBERS[metric] ?? 'baseline takes no %'}`);
  return {
    text: text.replace(/\s+/g, ''), metric, operator: operator as Operator,
    bound: bound === 'baseline' ? { t: 'baseline' } : { t: 'constant', value: Number(bound) / (percent ? 100 : 1) },
  };
}

/**
 * With another model the device has run nothing at lambda 0 that it could be held against, and shares of the experts of two
 * models are of different things. Throws InvalidRequestError.
 */
export function checkGates(gates: readonly Gate[], field: PinField): void {
  if (field !== 'model') return;
  for (const { text, metric, bound } of gates) {
    const alien = metric === 'perplexityLoss' || metric === 'crossEntropyLoss' || metric === 'swapRate' || (metric === 'missRate' && bound.t === 'baseline');
    if (alien) throw new InvalidRequestError('staging.gate', text, 'a gate that a change of model can be judged by; use errors==0, perplexityRise<2% (over the model before; both must have the same vocabulary), missRate<20% or tokensPerSecond>=baseline');
  }
}

export function needsMeasure(gates: readonly Gate[]): boolean {
  return gates.some((gate) => gate.metric !== 'errors');
}

export function needsBaseline(gates: readonly Gate[]): boolean {
  return gates.some((gate) => gate.bound.t === 'baseline' || gate.metric === 'perplexityRise');
}

export function needsSpeed(gates: readonly Gate[]): boolean {
  return gates.some((gate) => gate.metric === 'tokensPerSecond');
}

export function judgeGate(gate: Gate, input: GateInput): Finding {
  const value = figure(gate.metric, input);
  const limit = gate.bound.t === 'constant' ? gate.bound.value : figure(gate.metric, { measured: input.baseline, baseline: null, errors: 0 })?.mean ?? null;
  const windows = input.measured?.windows.length ?? 0;
  const none = { gate: gate.text, verdict: 'unclear' as const, value: value?.mean ?? null, low: null, high: null, limit, windows };
  if (!value) return { ...none, text: `not measured, or with fewer than ${LEAST_WINDOWS} windows` };
  if (limit === null) return { ...none, text: 'there is no measurement from before the change' };
  const exact = value.low === value.mean && value.high === value.mean;
  const shown = (number: number) => (gate.metric === 'errors' ? String(number) : gate.metric === 'tokensPerSecond' ? number.toFixed(2) : gate.metric === 'crossEntropyLoss' ? `${number.toFixed(5)} nats` : `${(number * 100).toFixed(3)}%`);
  return {
    gate: gate.text, verdict: compare(gate.operator, value, limit), value: value.mean, limit, windows,
    low: exact ? null : value.low, high: exact ? null : value.high,
    text: `${gate.metric} ${shown(value.mean)}${exact ? '' : ` (95% bounds ${shown(value.low)} to ${shown(value.high)}, ${windows} windows)`}, limit ${gate.operator} ${shown(limit)}`,
  };
}

interface Interval { mean: number; low: number; high: number }

/** null where it was not measured, or too little */
function figure(metric: Metric, { measured, baseline, errors }: GateInput): Interval | null {
  if (metric === 'errors') return exactly(errors);
  if (!measured) return null;
  switch (metric) {
    case 'crossEntropyLoss': return lossBounds(measured);
    case 'perplexityLoss': return asPerplexity(lossBounds(measured));
    case 'perplexityRise': return asPerplexity(baseline && riseBounds(measured, baseline));
    case 'missRate': case 'swapRate': case 'tokensPerSecond': return measured[metric] === null ? null : exactly(measured[metric]);
  }
}

/** Nats per token at the spec now, less those at the one before, on the windows that both have; null where these are too few, or of another length. */
function riseBounds(measured: Measured, baseline: Measured): Interval | null {
  if (measured.windowTokens !== baseline.windowTokens) return null;
  const count = Math.min(measured.windows.length, baseline.windows.length);
  return lossBounds({ windows: measured.windows.slice(0, count), windowsLambdaZero: baseline.windows.slice(0, count) });
}

function asPerplexity(nats: Interval | null): Interval | null {
  return nats && { mean: Math.expm1(nats.mean), low: Math.expm1(nats.low), high: Math.expm1(nats.high) };
}

/** Nats per token at the spec, less those at lambda 0, over windows; null for too few. */
export function lossBounds({ windows, windowsLambdaZero }: Pick<Measured, 'windows' | 'windowsLambdaZero'>): Interval | null {
  const count = windows.length;
  if (count < LEAST_WINDOWS || windowsLambdaZero.length !== count) return null;
  const differences = windows.map((nats, at) => nats - windowsLambdaZero[at]!);
  if (!differences.every(Number.isFinite)) return null;
  const mean = differences.reduce((sum, each) => sum + each, 0) / count;
  const squares = differences.reduce((sum, each) => sum + (each - mean) ** 2, 0);
  const reach = T95[Math.min(count - 1, T95.length) - 1]! * Math.sqrt(squares / (count - 1) / count);
  return { mean, low: mean - reach, high: mean + reach };
}

function exactly(value: number): Interval | null {
  return Number.isFinite(value) ? { mean: value, low: value, high: value } : null;
}

function compare(operator: Operator, { low, high }: Interval, limit: number): Finding['verdict'] {
  switch (operator) {
    case '<': return high < limit ? 'pass' : low >= limit ? 'fail' : 'unclear';
    case '<=': return high <= limit ? 'pass' : low > limit ? 'fail' : 'unclear';
    case '>': return low > limit ? 'pass' : high <= limit ? 'fail' : 'unclear';
    case '>=': return low >= limit ? 'pass' : high < limit ? 'fail' : 'unclear';
    case '==': return low === high ? (low === limit ? 'pass' : 'fail') : low > limit || high < limit ? 'fail' : 'unclear';
  }
}
