/**
 * Runs the arms of a bench: all of them once per run, in an order that rotates, each in a process of its own that starts
 * inside the control groups, with the page cache dropped before. A machine that gets slower or faster meanwhile favours
 * none, and the arms of one run can be compared in pairs.
 */
import { Failure, UsageFailure } from '../failure';
import { runEngineJob } from '../engine/engine-process';
import type { DecodeOutcome, EngineSettings } from '../engine/engine-job';
import type { Arm } from './arm';
import { runTool } from './bench-tool';
import type { Cgroups, Launcher, Limits } from './cgroup';
import { type Decoded, decodedByEngine, decodedByStock, figuresOf } from './decoded';
import { rhythmOf } from './floor';
import { busySeconds, othersProcessors } from './other-load';
import { type CacheDrop, dropPageCache } from './page-cache';

const COMPUTE_TOKENS = 64;
const PROBE_NS = 1_000_000_000;
/** A throttle starts with some credit, which must be spent before it is measured; longer by this. */
const THROTTLED_SKIP_NS = 1_000_000_000;

export interface BenchPlan {
  model: { path: string; fileBytes: number; experts: number; topK: number; moeLayers: number; expertBytes: number };
  text: string;
  textPath: string;
  tokens: number;
  /** tokens that the stock library decodes: from a disk it can be slow beyond patience */
  stockTokens: number;
  context: number;
  warmUpTokens: number;
  threads: number;
  lanes: number;
  arms: readonly Arm[];
  runs: number;
  withFloor: boolean;
  limits: Limits;
  /** the engine's own reads are held to this speed, in place of the throttle of `limits`; null: the throttle holds them */
  paceBytesPerSecond: number | null;
  /** null: `limits` cannot be had, and are not asked for */
  cgroups: Cgroups | null;
}

export interface ArmRun {
  decoded: Decoded;
  /** as the control group counts it, page cache included */
  cgroupPeakBytes: number | null;
  /** how fast the disk reads in this arm's rhythm; null without a floor */
  pacedBytesPerSecond: number | null;
  counters: DecodeOutcome['counters'] | null;
  /** processors that were busy with something else meanwhile, on average */
  othersProcessors: number;
}

/** What one run of all arms gave; by the arm's name. */
export interface BenchRun {
  arms: Map<string, ArmRun>;
  /** with every expert in memory; null without a floor */
  computeMs: number | null;
  /** of the bare disk under the limits, read without a pause */
  steadyBytesPerSecond: number | null;
}

export interface BenchListener { onProgress(fraction: number, what: string): void; }

export interface BenchOutcome { runs: BenchRun[]; cacheDrop: CacheDrop; }

/** Indices 0 to n-1, starting one further with every run. */
export function rotation(n: number, run: number): number[] {
  return Array.from({ length: n }, (_, i) => (i + run) % n);
}

export async function runBench(plan: BenchPlan, listener: BenchListener, signal: AbortSignal): Promise<BenchOutcome> {
  const runs: BenchRun[] = [];
  let cacheDrop: CacheDrop = 'file';
  for (let run = 0; run < plan.runs; run += 1) {
    const done: BenchRun = { arms: new Map(), computeMs: null, steadyBytesPerSecond: null };
    const say = (index: number, what: string) => listener.onProgress((run + index / (plan.arms.length + 1)) / plan.runs, `run ${run + 1} of ${plan.runs}, ${what}:`);
    say(0, 'the bare disk, and everything in memory');
    cacheDrop = await dropPageCache(plan.model.path, signal);
    done.steadyBytesPerSecond = await probe(plan, [plan.model.topK * plan.model.moeLayers], 0, signal);
    if (plan.withFloor) done.computeMs = await computeAlone(plan, signal);
    for (const [index, which] of rotation(plan.arms.length, run).entries()) {
      const arm = plan.arms[which]!;
      say(index + 1, arm.name);
      await dropPageCache(plan.model.path, signal);
      const armRun = await runArm(plan, arm, done.computeMs, run, signal);
      done.arms.set(arm.name, armRun);
    }
    runs.push(done);
  }
  return { runs, cacheDrop };
}

async function runArm(plan: BenchPlan, arm: Arm, computeMs: number | null, run: number, signal: AbortSignal): Promise<ArmRun> {
  const failed = (why: string): ArmRun => ({ decoded: { tokens: [], peakRssBytes: 0, cpuSeconds: 0, void: why }, cgroupPeakBytes: null, pacedBytesPerSecond: null, counters: null, othersProcessors: 0 });
  return within(plan, arm.t === 'stock' ? plan.limits : engineLimits(plan), async (launcher, group) => {
    let decoded: Decoded;
    let counters: ArmRun['counters'] = null;
    const before = { busy: busySeconds(), own: ownSeconds(), atMs: performance.now() };
    try {
      if (arm.t === 'stock') {
        decoded = decodedByStock(await runTool(stockArguments(plan, arm.extraBufts), launcher, signal));
      } else {
        const outcome = await runEngineJob({ t: 'decode', settings: pacedSettings(plan, arm.settings), ...decodeOf(plan), passes: 1 }, { onProgress: () => {} }, signal, launcher);
        counters = outcome.counters;
        decoded = decodedByEngine(outcome, plan.model.topK * plan.model.moeLayers);
      }
    } catch (error) {
      // One arm that does not fit its memory must not cost the others theirs; a mistake in an arm should.
      if (signal.aborted || !(error instanceof Failure) || error instanceof UsageFailure) throw error;
      const killed = (group?.outOfMemoryKills() ?? 0) > 0;
      return failed(killed ? 'the kernel killed it: over its memory limit' : error.message);
    }
    const others = othersProcessors(busySeconds() - before.busy, decoded.cpuSeconds + ownSeconds() - before.own, (performance.now() - before.atMs) / 1e3);
    const cgroupPeakBytes = group?.peakBytes() ?? null;
    return { decoded, cgroupPeakBytes, pacedBytesPerSecond: await pacedSpeed(plan, decoded, computeMs, signal), counters, othersProcessors: others };
  }, `arm-${run}-${arm.name}`);
}

function ownSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

function decodeOf(plan: BenchPlan) {
  return { text: plan.text, textPath: plan.textPath, tokens: plan.tokens, context: plan.context };
}

function stockArguments(plan: BenchPlan, extraBufts: boolean, tokens = plan.stockTokens, passes = 1): string[] {
  return ['stock', plan.model.path, plan.textPath, ...[tokens, plan.context, plan.threads, passes, extraBufts ? 1 : 0].map(String)];
}

/** The same tokens twice through an unlimited cache: the second time nothing is read. */
async function computeAlone(plan: BenchPlan, signal: AbortSignal): Promise<number> {
  const template = plan.arms.find((arm) => arm.t === 'engine');
  if (template?.t !== 'engine') throw new UsageFailure('--arms: the floor is measured with the engine; name an arm other than stock, or give --no-floor');
  const tokens = Math.min(plan.context, COMPUTE_TOKENS);
  const outcome = await runEngineJob({
    t: 'decode', settings: { ...template.settings, cache: { t: 'all' }, routing: { ...template.settings.routing, routing: 'original' } },
    text: plan.text, textPath: plan.textPath, tokens, context: tokens, passes: 2,
  }, { onProgress: () => {} }, signal);
  return figuresOf(decodedByEngine(outcome, 1), tokens)!.msPerToken;
}

async function pacedSpeed(plan: BenchPlan, decoded: Decoded, computeMs: number | null, signal: AbortSignal): Promise<number | null> {
  const figures = figuresOf(decoded, plan.warmUpTokens);
  if (computeMs === null || !figures?.flashBytesPerToken) return null;
  const { misses, pauseNs } = rhythmOf(decoded.tokens.slice(plan.warmUpTokens), plan.model.moeLayers, computeMs);
  return misses.some((each) => each > 0) ? probe(plan, misses, pauseNs, signal) : null;
}

/** How fast the disk is for the engine's reader where each token misses as many experts as `misses` says, in turns. */
async function probe(plan: BenchPlan, misses: readonly number[], pauseNs: number, signal: AbortSignal): Promise<number> {
  const { read } = engineLimits(plan);
  const skipNs = read ? THROTTLED_SKIP_NS : 0;
  return within(plan, { memoryBytes: null, read }, async (launcher) => {
    const printed = await runTool(['probe', plan.model.path, ...[plan.lanes, plan.paceBytesPerSecond ?? 0, pauseNs, PROBE_NS + skipNs, skipNs].map(String), misses.join(',')], launcher, signal);
    const { bytes, readNs } = JSON.parse(printed) as { bytes: number; readNs: number };
    return bytes / (readNs / 1e9);
  }, 'probe');
}

function engineLimits({ limits, paceBytesPerSecond }: BenchPlan): Limits {
  return paceBytesPerSecond === null ? limits : { ...limits, read: null };
}

function pacedSettings({ paceBytesPerSecond }: BenchPlan, settings: EngineSettings): EngineSettings {
  return paceBytesPerSecond === null ? settings : { ...settings, readBytesPerSecond: paceBytesPerSecond };
}

async function within<T>(plan: BenchPlan, limits: Limits, work: (launcher: Launcher | null, group: ReturnType<Cgroups['make']> | null) => Promise<T>, name: string): Promise<T> {
  if (!plan.cgroups) return work(null, null);
  const group = plan.cgroups.make(`moefleet-bench-${process.pid}-${name}`, limits);
  try {
    return await work(group.launcher, group);
  } finally {
    group.remove();
  }
}
