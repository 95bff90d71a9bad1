/**
 * What λ costs and saves, predicted between the points where it was measured: for every domain (a text), topJ and
 * routing a family of curves over λ, one per capacity.
 *
 * Along λ the loss is made non-decreasing and the misses non-increasing by isotonic regression, and both are read off
 * straight lines between points, along λ and between capacities. Not a Gaussian process: the shape is known (more λ
 * never saves quality, nor does it add misses), a curve has five to ten points of known error, and a smooth fit could
 * dip between two of them exactly where the budget runs. Misses are convex over λ and over the capacity wherever we have
 * looked, so a straight line lies above them. The loss is not everywhere (on the reference model λ 0.2 topJ 1 costs 1.6%
 * with 8 and with 12 of 32 experts, 0.9% with 16): half way between two points it may bow by a quarter of their
 * difference, which counts as one standard error more. With every expert resident λ costs and saves nothing, so that end
 * of the capacities is known without a measurement. Outside of what is measured nothing is predicted.
 *
 * The domains are a sample of what devices are used for. The mean's error holds their spread as well as each one's own
 * (random effects, DerSimonian and Laird 1986), and a domain's loss is drawn towards the mean as far as its error allows
 * (Efron and Morris 1975), lest the worst of many noisy figures be taken for the worst domain.
 */
import { Routing } from '@moefleet/proto';
import { isotonic } from './isotonic';
import { strengths } from './routing-strength';
import { type ModelShape, residentShare, sameCapacities, type Setting } from './setting';

export interface MeasuredPoint {
  readonly routing: Routing;
  readonly lambda: number;
  readonly topJ: number;
  readonly capacities: readonly number[];
  /** nats per token against lambda 0 on the same tokens, and the standard error of it */
  readonly loss: number;
  readonly stderr: number;
  /** per selected slot */
  readonly missRate: number;
  /** the same per MoE layer; absent: missRate for all */
  readonly layerMissRates?: readonly number[];
  /** softmax mass per routing event */
  readonly massLost: number;
}

export interface MeasuredDomain { readonly domain: string; readonly points: readonly MeasuredPoint[] }

/** nats per token; `upper` is the one-sided 95% bound */
export interface Estimate { readonly mean: number; readonly stderr: number; readonly upper: number }
export interface DomainEstimate extends Estimate { readonly domain: string }

export interface QualityPrediction {
  /** mean over the domains */
  readonly loss: Estimate;
  /** the domain with the highest upper bound */
  readonly worst: DomainEstimate;
  readonly domains: readonly DomainEstimate[];
  readonly missRate: number;
  readonly layerMissRates: readonly number[];
  /** mean over the domains, and where it is the least and the most */
  readonly massLost: number;
  readonly leastMassLost: number;
  readonly mostMassLost: number;
  /** measured at this very setting in every domain */
  readonly measured: boolean;
}

export interface Candidate { readonly setting: Setting; readonly quality: QualityPrediction }

/** One-sided 95%. */
const BOUND_STDERRS = 1.645;
/** Domains are taken to differ by a quarter of the loss at least: a few of them cannot show that they do not. */
const LEAST_SPREAD = 0.25;
/** Answers kept, by capacities: a fleet has few distinct ones. */
const MOST_KEPT = 512;

interface Knot { lambda: number; loss: number; stderr: number; missRate: number; layerMissRates: readonly number[]; massLost: number }
/** `even`: the layers' capacities differ by one at most, so that it stands for its share of experts */
interface Level { share: number; capacities: readonly number[]; even: boolean; knots: readonly Knot[] }
interface Line { routing: Routing; topJ: number; levels: readonly Level[] }
interface Read extends Omit<Knot, 'lambda'> { measured: boolean }

export class QualitySurface {
  readonly domains: readonly string[];
  private readonly lines: readonly { domain: string; lines: readonly Line[] }[];
  private readonly kept = new Map<string, readonly Candidate[]>();

  /** Points that make no sense (not finite, of other layers) are left out; `setAside` says how many. */
  readonly setAside: number;

  constructor(measured: readonly MeasuredDomain[], private readonly shape: ModelShape) {
    let setAside = 0;
    this.domains = measured.map(({ domain }) => domain);
    this.lines = measured.map(({ domain, points }) => {
      const sound = points.filter((point) => isSound(point, shape));
      setAside += points.length - sound.length;
      return { domain, lines: linesOf(sound, shape) };
    });
    this.setAside = setAside;
  }

  /** null where nothing that was measured surrounds the setting. */
  predict(setting: Setting): QualityPrediction | null {
    if (this.lines.length === 0 || setting.capacities.length !== this.shape.expertBytes.length) return null;
    const reads: Read[] = [];
    for (const { lines } of this.lines) {
      const line = setting.lambda === 0 ? lines[0] : lines.find((one) => one.routing === setting.routing && one.topJ === setting.topJ);
      const read = line && readLine(line, setting, this.shape);
      if (!read) return null;
      reads.push(read);
    }
    return combine(this.domains, reads);
  }

  /** Every setting that a device can be given at these capacities for which there is a prediction; λ 0 first. */
  candidates(capacities: readonly number[]): readonly Candidate[] {
    const key = capacities.join();
    const kept = this.kept.get(key);
    if (kept) return kept;
    const found: Candidate[] = [];
    const add = (setting: Setting): boolean => {
      const quality = this.predict(setting);
      if (quality) found.push({ setting, quality });
      return quality !== null;
    };
    const own = add({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, topJ: 0, capacities });
    for (const { routing, topJ } of own ? this.lines[0]!.lines : []) {
      for (const lambda of strengths(routing, this.shape)) if (!add({ routing, lambda, topJ, capacities })) break;
    }
    if (this.kept.size >= MOST_KEPT) this.kept.clear();
    this.kept.set(key, found);
    return found;
  }
}

function estimate(mean: number, stderr: number): Estimate {
  return { mean, stderr, upper: mean + BOUND_STDERRS * stderr };
}

function isSound(point: MeasuredPoint, shape: ModelShape): boolean {
  const share = (value: number) => value >= 0 && value <= 1;
  return point.capacities.length === shape.expertBytes.length && point.capacities.every((capacity) => capacity >= 1 && capacity <= shape.experts) &&
    share(point.lambda) && share(point.missRate) && Number.isFinite(point.loss) && point.stderr >= 0 && Number.isFinite(point.stderr) &&
    Number.isFinite(point.massLost) && (point.layerMissRates?.every(share) ?? true);
}

/** One line per routing and topJ; each of its levels begins with λ 0, and those without one are left out. */
function linesOf(points: readonly MeasuredPoint[], shape: ModelShape): Line[] {
  const baselines = points.filter((point) => point.lambda === 0);
  const bent = points.filter((point) => point.lambda > 0);
  const kinds = new Map(bent.map(({ routing, topJ }) => [`${routing} ${topJ}`, { routing, topJ }]));
  const only = baselines[0] && { routing: baselines[0].routing, topJ: baselines[0].topJ };
  const all = kinds.size > 0 ? [...kinds.values()].sort((a, b) => a.routing - b.routing || a.topJ - b.topJ) : only ? [only] : [];
  return all.map(({ routing, topJ }) => ({
    routing, topJ,
    levels: baselines.map((baseline) => levelOf([
      baseline, ...bent.filter((point) => point.routing === routing && point.topJ === topJ && sameCapacities(point.capacities, baseline.capacities)),
    ], shape)).sort((a, b) => a.share - b.share),
  }));
}

function levelOf(points: readonly MeasuredPoint[], shape: ModelShape): Level {
  const { capacities } = points[0]!;
  const sorted = [...points].sort((a, b) => a.lambda - b.lambda);
  const layers = sorted.map((point) => point.layerMissRates ?? capacities.map(() => point.missRate));
  const weights = sorted.map(({ lambda, stderr }) => (lambda === 0 ? 1e12 : 1 / Math.max(stderr, 1e-6) ** 2));
  const losses = isotonic(sorted.map(({ lambda, loss }) => (lambda === 0 ? 0 : loss)), weights);
  const even = sorted.map(() => 1);
  const falling = (rates: readonly number[]) => isotonic(rates.map((rate) => -rate), even).map((rate) => -rate);
  const missRates = falling(sorted.map((point) => point.missRate));
  const byLayer = capacities.map((_, layer) => falling(layers.map((rates) => rates[layer]!)));
  return {
    capacities, share: residentShare(shape, capacities), even: Math.max(...capacities) - Math.min(...capacities) <= 1,
    knots: sorted.map((point, i) => ({
      lambda: point.lambda, loss: losses[i]!, stderr: point.lambda === 0 ? 0 : point.stderr, missRate: missRates[i]!,
      layerMissRates: byLayer.map((rates) => rates[i]!), massLost: point.massLost,
    })),
  };
}

function readLine(line: Line, setting: Setting, shape: ModelShape): Read | null {
  const { lambda, capacities } = setting;
  const exact = line.levels.find((level) => sameCapacities(level.capacities, capacities));
  const read = exact && readLevel(exact, lambda);
  if (read) return read;
  const share = residentShare(shape, capacities);
  const even = line.levels.filter((level) => level.even && reaches(level, lambda));
  const below = even.filter((level) => level.share <= share).at(-1);
  if (!below) return null;
  const above = even.find((level) => level.share > share);
  const low = readLevel(below, lambda)!;
  const high = above ? readLevel(above, lambda)! : nothingLost(capacities.length);
  const at = (share - below.share) / Math.max((above?.share ?? 1) - below.share, 1e-12);
  const layerMissRates = layersAt(even, setting, shape);
  // Every layer has as many slots as any other.
  return { ...mix(low, high, Math.min(at, 1)), missRate: average(layerMissRates), layerMissRates, measured: false };
}

/** Each layer at its own capacity, which may differ from the others'. */
function layersAt(levels: readonly Level[], { lambda, capacities }: Setting, shape: ModelShape): number[] {
  return capacities.map((capacity, layer) => {
    const below = levels.filter((level) => level.capacities[layer]! <= capacity).at(-1) ?? levels[0]!;
    const above = levels.find((level) => level.capacities[layer]! > capacity);
    const from = below.capacities[layer]!;
    const to = above?.capacities[layer] ?? shape.experts;
    const at = to > from ? Math.min(Math.max((capacity - from) / (to - from), 0), 1) : 0;
    const low = readLevel(below, lambda)!.layerMissRates[layer]!;
    return low + at * ((above ? readLevel(above, lambda)!.layerMissRates[layer]! : 0) - low);
  });
}

function reaches(level: Level, lambda: number): boolean {
  return lambda <= level.knots.at(-1)!.lambda + 1e-12;
}

function readLevel(level: Level, lambda: number): Read | null {
  if (!reaches(level, lambda)) return null;
  const right = level.knots.findIndex((knot) => knot.lambda >= lambda - 1e-12);
  const to = level.knots[right]!;
  if (Math.abs(to.lambda - lambda) < 1e-12) return { ...to, measured: true };
  const from = level.knots[right - 1]!;
  return { ...mix(from, to, (lambda - from.lambda) / (to.lambda - from.lambda)), measured: false };
}

/** The ends' errors are taken as if they were one, as both come from the same windows of text; that of the line adds to them. */
function mix(a: Omit<Knot, 'lambda'>, b: Omit<Knot, 'lambda'>, at: number): Omit<Knot, 'lambda'> {
  const between = (x: number, y: number) => x + at * (y - x);
  return {
    loss: between(a.loss, b.loss), stderr: Math.hypot(between(a.stderr, b.stderr), at * (1 - at) * (b.loss - a.loss)), missRate: between(a.missRate, b.missRate), massLost: between(a.massLost, b.massLost),
    layerMissRates: a.layerMissRates.map((rate, layer) => between(rate, b.layerMissRates[layer]!)),
  };
}

/** Every expert resident. */
function nothingLost(layers: number): Read {
  return { loss: 0, stderr: 0, missRate: 0, layerMissRates: new Array<number>(layers).fill(0), massLost: 0, measured: true };
}

function combine(names: readonly string[], reads: readonly Read[]): QualityPrediction {
  const mean = average(reads.map(({ loss }) => loss));
  const own = average(reads.map(({ stderr }) => stderr ** 2));
  const seen = reads.length > 1 ? reads.reduce((sum, { loss }) => sum + (loss - mean) ** 2, 0) / (reads.length - 1) : 0;
  const spread = reads.length > 1 ? Math.max(seen - own, (LEAST_SPREAD * mean) ** 2) : 0;
  const stderr = Math.sqrt((own + spread) / reads.length);
  const domains = reads.map((read, i) => ({ domain: names[i]!, ...drawn(read, mean, stderr, spread) }));
  return {
    loss: estimate(mean, stderr),
    worst: domains.reduce((worst, one) => (one.upper > worst.upper ? one : worst)),
    domains,
    missRate: average(reads.map((read) => read.missRate)),
    layerMissRates: reads[0]!.layerMissRates.map((_, layer) => average(reads.map((read) => read.layerMissRates[layer]!))),
    massLost: average(reads.map((read) => read.massLost)),
    leastMassLost: Math.min(...reads.map((read) => read.massLost)),
    mostMassLost: Math.max(...reads.map((read) => read.massLost)),
    measured: reads.every((read) => read.measured),
  };
}

function drawn({ loss, stderr }: Read, mean: number, meanStderr: number, spread: number): Estimate {
  const total = spread + stderr ** 2;
  if (total === 0 || spread === 0) return estimate(loss, stderr);
  const trust = spread / total;
  return estimate(mean + trust * (loss - mean), Math.sqrt(trust * stderr ** 2 + ((1 - trust) * meanStderr) ** 2));
}

function average(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
