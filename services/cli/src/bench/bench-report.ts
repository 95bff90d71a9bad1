/** The runs of a bench as figures: medians with their spread, ratios within runs, and how far each arm is from the floor. */
import { formatSize } from '@moefleet/runtime';
import type { EvaluateOutcome } from '../engine/engine-job';
import { fixed, NONE, pairs, percent, table } from '../table';
import { REFERENCE_ARM, STOCK_ARM } from './arm';
import type { ArmRun, BenchOutcome, BenchPlan } from './bench-run';
import type { DiskProfile } from './disk-profile';
import { type Figures, figuresOf } from './decoded';
import { type Floor, floorOf } from './floor';
import { median, pairedRatios, type Spread, spread } from './statistics';

export interface Conditions {
  engine: string;
  profile: DiskProfile;
  device: string | null;
  capacity: number;
  /** without control groups: what stands in their way, or that they were not asked for */
  missing: string | null;
  loadAverage: number;
}

export interface Quality { tokens: number; perplexity: number; lossPercent: number; missRate: number; baselineMissRate: number; }

type Report = ReturnType<typeof reportOf>;

export function qualityOf({ result, baseline }: EvaluateOutcome): Quality {
  return {
    tokens: result.tokens, perplexity: Math.exp(result.crossEntropy), lossPercent: Math.expm1(result.crossEntropy - baseline!.crossEntropy) * 100,
    missRate: result.missRate, baselineMissRate: baseline!.missRate,
  };
}

export function reportOf(plan: BenchPlan, conditions: Conditions, { runs, cacheDrop }: BenchOutcome, quality: ReadonlyMap<string, Quality>) {
  const of = (name: string) => runs.map((run) => run.arms.get(name) ?? null);
  return {
    model: { ...plan.model },
    conditions: {
      ...conditions, profile: conditions.profile.name, throttleBytesPerSecond: plan.limits.read?.bytesPerSecond ?? null, paceBytesPerSecond: plan.paceBytesPerSecond,
      memoryBytes: plan.limits.memoryBytes, cgroups: plan.cgroups?.version ?? null, cacheDrop,
      tokens: plan.tokens, stockTokens: plan.stockTokens, warmUpTokens: plan.warmUpTokens, context: plan.context,
      threads: plan.threads, lanes: plan.lanes, runs: plan.runs,
    },
    disk: { steadyBytesPerSecond: spread(present(runs.map((run) => run.steadyBytesPerSecond))) },
    computeMs: spread(present(runs.map((run) => run.computeMs))),
    arms: plan.arms.map((arm) => {
      const mine = of(arm.name);
      const figures = mine.map((run) => (counts(run) ? figuresOf(run.decoded, plan.warmUpTokens) : null));
      const each = (value: (figures: Figures) => number | null) => spread(present(figures.map((one) => one && value(one))));
      return {
        name: arm.name, flags: arm.text,
        void: [...new Set(mine.flatMap((run) => run?.decoded.void ?? []))].join('; ') || null,
        tokens: figures.find((one) => one)?.tokens ?? 0,
        tokensPerSecond: each((one) => one.tokensPerSecond),
        msPerToken: each((one) => one.msPerToken),
        missRate: each((one) => one.missRate),
        misses: mine.map((run) => (counts(run) ? missesOf(run) : null)),
        flashBytesPerToken: each((one) => one.flashBytesPerToken),
        readBytesPerSecond: each((one) => one.readBytesPerSecond),
        stallShare: each((one) => one.stallShare),
        peakRssBytes: spread(mine.flatMap((run) => (counts(run) ? [run.decoded.peakRssBytes] : []))),
        cgroupPeakBytes: spread(present(mine.map((run) => run?.cgroupPeakBytes ?? null))),
        othersProcessors: spread(mine.flatMap((run) => (counts(run) ? [run.othersProcessors] : []))),
        perplexity: each((one) => Math.exp(one.crossEntropy)),
        quality: quality.get(arm.name) ?? null,
        // of the last run: read times, and what each layer did
        counters: mine.filter(counts).at(-1)?.counters ?? null,
        speedup: {
          overReference: speedup(mine, of(REFERENCE_ARM), plan.warmUpTokens),
          overStock: speedup(mine, of(STOCK_ARM), plan.warmUpTokens),
        },
        floor: middleFloor(runs.flatMap((run, i) => {
          const [one, mineOfRun] = [figures[i], mine[i]];
          if (!one?.flashBytesPerToken || run.computeMs === null || !mineOfRun?.pacedBytesPerSecond) return [];
          return [{ diskBytesPerSecond: mineOfRun.pacedBytesPerSecond, ...floorOf(one.msPerToken, run.computeMs, one.flashBytesPerToken, mineOfRun.pacedBytesPerSecond) }];
        })),
      };
    }),
  };
}

function counts(run: ArmRun | null): run is ArmRun {
  return run !== null && run.decoded.void === null;
}

function missesOf({ decoded }: ArmRun): number | null {
  return decoded.tokens.every((token) => token.engine) ? decoded.tokens.reduce((sum, token) => sum + token.engine!.misses, 0) : null;
}

/** Times the speed of the other, run by run, over the tokens that both decoded. */
function speedup(mine: readonly (ArmRun | null)[], others: readonly (ArmRun | null)[], warmUp: number): Spread | null {
  const times = mine.map((run, i): [number | null, number | null] => {
    const other = others[i] ?? null;
    if (!counts(run) || !counts(other)) return [null, null];
    const end = Math.min(run.decoded.tokens.length, other.decoded.tokens.length);
    const [a, b] = [figuresOf(other.decoded, warmUp, end), figuresOf(run.decoded, warmUp, end)];
    return [a?.msPerToken ?? null, b?.msPerToken ?? null];
  });
  return spread(pairedRatios(times.map(([other]) => other), times.map(([, own]) => own)));
}

type PacedFloor = Floor & { diskBytesPerSecond: number };

/** Each term's median. */
function middleFloor(floors: readonly PacedFloor[]): PacedFloor | null {
  if (floors.length === 0) return null;
  const middle = (key: keyof PacedFloor) => median(floors.map((floor) => floor[key]));
  return {
    diskBytesPerSecond: middle('diskBytesPerSecond'), computeMs: middle('computeMs'), readMs: middle('readMs'), sumMs: middle('sumMs'),
    largerMs: middle('largerMs'), overSum: middle('overSum'), overLarger: middle('overLarger'),
  };
}

function present<T>(values: readonly (T | null)[]): T[] {
  return values.filter((value): value is T => value !== null);
}

const MEGABYTE = 1e6;

export function reportText(report: Report): string {
  const { conditions: c, model, disk, computeMs } = report;
  const memory = c.memoryBytes === null ? 'not limited' : `${formatSize(c.memoryBytes)} for each arm (cgroup ${c.cgroups}), page cache included`;
  const throttle = c.throttleBytesPerSecond === null ? 'not throttled' : `throttled to ${megabytes(c.throttleBytesPerSecond)} MB/s${c.paceBytesPerSecond === null ? '' : ' for stock, paced for the engine'}`;
  const head = pairs([
    ['model', `${model.path}, ${formatSize(model.fileBytes)}; ${model.moeLayers} layers of ${model.experts} experts of ${formatSize(model.expertBytes)}, top ${model.topK}`],
    ['engine', `${c.engine}, ${c.threads} threads, ${c.lanes} lanes`],
    ['cache', `${c.capacity} of ${model.experts} experts per layer`],
    ['memory', memory],
    ['disk', `${c.profile}: ${throttle}${c.device ? ` (device ${c.device})` : ''}; ${disk.steadyBytesPerSecond ? `${megabytes(disk.steadyBytesPerSecond.median)} MB/s measured` : 'not measured'}`],
    ['tokens', `${c.tokens} (stock: ${c.stockTokens}), one at a time, the first ${c.warmUpTokens} not counted; ${c.runs} runs, order rotated; page cache dropped before each arm (${c.cacheDrop})`],
    ['load', `${c.loadAverage.toFixed(2)} on average in the minute before`],
    ...(c.missing ? [['missing', c.missing] as [string, string]] : []),
  ]);
  const arms = table(['ARM', 'TOKENS/S', '(SPREAD)', 'MS/TOKEN', 'X LRU', 'X STOCK', 'MISS', 'MB/TOKEN', 'READ MB/S', 'STALL', 'RSS', 'OTHERS', 'PERPLEXITY', 'LOSS'], report.arms.map((arm) => (arm.void !== null && !arm.tokensPerSecond
    ? [arm.name, 'void', ...Array<string>(12).fill('')]
    : [
      arm.name, middle(arm.tokensPerSecond, 2), range(arm.tokensPerSecond, 2), middle(arm.msPerToken, 1),
      middle(arm.speedup.overReference, 2), middle(arm.speedup.overStock, 2), percent(arm.missRate?.median, 2),
      scaled(arm.flashBytesPerToken), scaled(arm.readBytesPerSecond), percent(arm.stallShare?.median),
      arm.peakRssBytes ? formatSize(arm.peakRssBytes.median) : NONE, range(arm.othersProcessors, 1), middle(arm.perplexity, 3),
      arm.quality ? `${arm.quality.lossPercent >= 0 ? '+' : ''}${arm.quality.lossPercent.toFixed(2)}%` : NONE,
    ])), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
  const floors = report.arms.filter((arm) => arm.floor);
  const floorText = floors.length === 0 ? '' : `\nAgainst the floor: the arm's misses read by the engine's own reader with nothing else to do, and ${fixed(computeMs?.median, 1)} ms of arithmetic\n${table(
    ['ARM', 'MS/TOKEN', 'ARITHMETIC', 'READ', 'AT MB/S', 'SUM', 'X SUM', 'X LARGER'],
    floors.map(({ name, msPerToken, floor }) => [
      name, middle(msPerToken, 1), fixed(floor!.computeMs, 1), fixed(floor!.readMs, 1), megabytes(floor!.diskBytesPerSecond),
      fixed(floor!.sumMs, 1), fixed(floor!.overSum, 3), fixed(floor!.overLarger, 3),
    ]), [1, 2, 3, 4, 5, 6, 7])}`;
  const voids = report.arms.filter((arm) => arm.void !== null).map((arm) => `void: ${arm.name}: ${arm.void}\n`).join('');
  return `${head}\n${arms}${floorText}${voids}`;
}

function middle(value: Spread | null, digits: number): string {
  return fixed(value?.median, digits);
}

function range(value: Spread | null, digits: number): string {
  return value ? `${value.min.toFixed(digits)}-${value.max.toFixed(digits)}` : NONE;
}

function scaled(value: Spread | null): string {
  return value ? megabytes(value.median) : NONE;
}

function megabytes(bytes: number): string {
  return (bytes / MEGABYTE).toFixed(bytes < 100 * MEGABYTE ? 1 : 0);
}
