/** `moefleet engine bench`: engine settings against each other and against the stock library, at equal memory. */
import { loadavg } from 'node:os';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { formatSize, parseSize } from '@moefleet/runtime';
import { collect, integerFrom, listOf, numberFrom } from '../argument';
import { type Arm, type EngineArm, namedArms, parseArm } from '../bench/arm';
import { type Conditions, type Quality, qualityOf, reportOf, reportText } from '../bench/bench-report';
import { type BenchPlan, runBench } from '../bench/bench-run';
import { deviceOf } from '../bench/block-device';
import { type Cgroups, findCgroups, type Limits } from '../bench/cgroup';
import { type DiskProfile, parseProfile } from '../bench/disk-profile';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import type { EngineSettings, InspectOutcome } from '../engine/engine-job';
import { runEngineJob } from '../engine/engine-process';
import { Failure, UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';
import { readTextFile } from '../text-file';
import { settings } from './engine';

/** Node and the libraries, beyond what the engine accounts for. */
const RESERVE_BYTES = 150 * 1024 ** 2;
const DEFAULT_ARMS = 'stock,lru,lambda,ours';
const LANES = 4;

interface BenchFlags {
  model: string; text: string; arms: string; arm?: string[]; capacity: Share; tokens: number; stockTokens?: number; warmUp: number; context?: number;
  threads: number; lanes: number; runs: number; profile: DiskProfile; memory?: number; lambda: number | number[]; topJ: number | number[];
  floor: boolean; cgroup: boolean; paced?: boolean; qualityModel?: string; qualityTokens: number;
}

/** Of a layer's experts. */
type Share = { t: 'share'; share: number } | { t: 'experts'; experts: number };

export function addEngineBench(engine: Command, context: Context): void {
  const command = engine.command('bench')
    .description('tokens/s of engine settings and of the stock library, at equal memory and on a disk of a given speed')
    .requiredOption('--model <file>', 'GGUF file of a Mixture-of-Experts model')
    .requiredOption('--text <file>', 'UTF-8 text that all arms decode, one token at a time')
    .option('--arms <names>', 'named arms; see below', DEFAULT_ARMS)
    .option('--arm <name:flags>', 'one more arm, by the flags of `engine eval`; may be repeated', collect)
    .addOption(new Option('--lambda <x>', 'of the named arms that bend the router').argParser(listOf(numberFrom(0, 1))).default(0.3))
    .addOption(new Option('--top-j <n>', 'of the named arms that bend the router').argParser(listOf(integerFrom(0, 4096))).default(1))
    .addOption(new Option('--capacity <n>', 'experts per layer that may be in memory: a number, or a share such as 40%').argParser(parseShare).default(parseShare('40%'), '40%'))
    .addOption(new Option('--memory <size>', 'most memory of each arm, page cache included (default: what the engine accounts for, and 150 MiB)').argParser(memorySize))
    .addOption(new Option('--profile <disk>', 'emmc (250 MB/s), ufs2.1 (700), ufs3.1 (1000), raw, or a speed such as 500MB/s').argParser(parseProfile).default(parseProfile('raw'), 'raw'))
    .option('--paced', 'hold the engine\'s reads to the profile by a clock that, unlike the kernel\'s throttle, never makes up for idle time')
    .addOption(new Option('--tokens <n>', 'tokens to decode').argParser(integerFrom(1, 1 << 20)).default(256))
    .addOption(new Option('--stock-tokens <n>', 'tokens that a stock arm decodes (default: as all)').argParser(integerFrom(1, 1 << 20)))
    .addOption(new Option('--warm-up <n>', 'first tokens to leave out of the figures').argParser(integerFrom(0, 1 << 20)).default(0))
    .addOption(new Option('--context <n>', 'tokens per window; each starts with an empty KV cache (default: --tokens, or 256 of more)').argParser(integerFrom(1, 1 << 20)))
    .addOption(new Option('--threads <n>', 'compute threads of every arm').argParser(integerFrom(1, 512)).default(2))
    .addOption(new Option('--lanes <n>', 'parallel flash reads of every engine arm').argParser(integerFrom(1, 64)).default(LANES))
    .addOption(new Option('--runs <n>', 'how often all arms run').argParser(integerFrom(1, 1000)).default(3))
    .option('--no-floor', 'leave out the floor: arithmetic with every expert in memory, and the bare disk in each arm\'s rhythm')
    .option('--no-cgroup', 'limit neither memory nor disk; the arms are then not held to equal memory')
    .option('--quality-model <file>', 'the same model with narrow experts, to score perplexity on faster and longer')
    .addOption(new Option('--quality-tokens <n>', 'tokens to score on it, a multiple of 256').argParser(integerFrom(1)).default(4096))
    .addHelpText('after', HELP);
  addCommonOptions(command, { operator: false }).action(async (flags: BenchFlags, self: Command) => {
    const line = new ProgressLine(context.stderr);
    const listener = { onProgress: (fraction: number, what: string) => line.update(fraction, what) };
    const { plan, conditions } = await planBench(flags, context);
    const outcome = await runBench(plan, listener, context.signal).finally(() => line.end());
    const quality = await scoreQuality(flags, plan, listener, context).finally(() => line.end());
    const report = reportOf(plan, conditions, outcome, quality);
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(report) : reportText(report));
    if (report.arms.every((arm) => arm.void !== null)) throw new Failure(`no arm's result counts: ${report.arms[0]?.void}`);
  });
}

const HELP = `
Arms (${Object.keys(namedArms({ lambda: '', topJ: '' })).join(', ')}):
  stock          llama.cpp with its defaults: the file mapped, no hook
  lru            plain LRU with the model's own routing; what X LRU compares with
  lambda         lru bent by --lambda and --top-j
  ours-lossless  the best eviction, with the model's own routing: the output is the model's own
  ours           all of it: bent by --lambda and --top-j
Every arm is a process of its own, put before it starts into control groups that limit its memory, page cache included,
and its disk; the page cache is dropped first. All run once per run, in an order that rotates; figures are medians over
the runs, ratios are taken within a run over the tokens that both arms decoded. Reads through the page cache void an arm.
Loading is not timed. The limits take root.
The kernel's throttle lets a reader catch up after a pause, which no flash does: under it nothing is gained by reading
while computing. With --paced every read of the engine, in all its arms and in the floor, ends when a disk would be done
with it that serves one after another at the profile's speed. The stock library reads by page faults and keeps the
throttle.

Examples:
  moefleet engine bench --model wide.gguf --text unseen.txt --profile ufs2.1
  moefleet engine bench --model wide.gguf --text unseen.txt --arms stock,lru --stock-tokens 32 --json
  moefleet engine bench --model wide.gguf --text unseen.txt --arms lru --arm j2:lambda=0.3,topJ=2 --arm mild:lambda=0.1,topJ=1,eviction=lfu
  moefleet engine bench --model tiny.gguf --text unseen.txt --tokens 64 --no-cgroup
`;

function parseShare(text: string): Share {
  const match = /^\s*(\d+(?:\.\d+)?)\s*%\s*$/.exec(text);
  if (!match) return { t: 'experts', experts: integerFrom(1, 65_536)(text) };
  return { t: 'share', share: numberFrom(0, 100)(match[1]!) / 100 };
}

function memorySize(text: string): number {
  try {
    return parseSize(text);
  } catch {
    throw new InvalidArgumentError('Write bytes or a number with a unit, such as 8MiB or 1.5GiB.');
  }
}

async function planBench(flags: BenchFlags, context: Context): Promise<{ plan: BenchPlan; conditions: Conditions }> {
  const windowTokens = flags.context ?? Math.min(flags.tokens, 256);
  if (flags.tokens % windowTokens !== 0) throw new UsageFailure(`--tokens: ${flags.tokens} is not a multiple of --context ${windowTokens}; change either`);
  const stockTokens = Math.min(flags.stockTokens ?? flags.tokens, flags.tokens);
  if (flags.warmUp >= stockTokens) throw new UsageFailure(`--warm-up: ${flags.warmUp} leaves nothing of ${stockTokens} tokens; use less`);
  const text = readTextFile('--text', flags.text);
  const inspected = await runEngineJob({ t: 'inspect', settings: plainSettings(flags.model, windowTokens, flags) }, { onProgress: () => {} }, context.signal);
  const { info } = inspected;
  const capacity = capacityOf(flags.capacity, info);
  const arms = armsOf(flags, capacity);
  const { limits, cgroups, missing, device } = limitsFor(flags, inspected, capacity);
  return {
    plan: {
      model: { path: flags.model, fileBytes: info.fileBytes, experts: info.experts, topK: info.topK, moeLayers: info.moeLayers.length, expertBytes: Math.max(...info.expertBytes) },
      text, textPath: flags.text, tokens: flags.tokens, stockTokens, context: windowTokens, warmUpTokens: flags.warmUp,
      threads: flags.threads, lanes: flags.lanes, arms, runs: flags.runs, withFloor: flags.floor, limits, cgroups,
      paceBytesPerSecond: flags.paced ? flags.profile.bytesPerSecond : null,
    },
    conditions: { engine: inspected.engine, profile: flags.profile, device, capacity, missing, loadAverage: loadavg()[0]! },
  };
}

function plainSettings(model: string, contextTokens: number, { threads, lanes }: BenchFlags): EngineSettings {
  return settings({ model, threads, lanes, prefill: 0, directIo: true }, contextTokens);
}

function capacityOf(share: Share, { experts, topK }: InspectOutcome['info']): number {
  const capacity = share.t === 'experts' ? share.experts : Math.max(topK, Math.round(experts * share.share));
  if (capacity < topK || capacity > experts) throw new UsageFailure(`--capacity: ${capacity} is outside ${topK} to ${experts}: a layer needs its top-${topK} experts at once, and has ${experts}`);
  return capacity;
}

function armsOf(flags: BenchFlags, capacity: number): Arm[] {
  const defaults = { model: flags.model, threads: flags.threads, lanes: flags.lanes, capacity, lambda: String(flags.lambda), topJ: String(flags.topJ) };
  const texts = [...flags.arms.split(',').map((each) => each.trim()).filter(Boolean), ...(flags.arm ?? [])];
  const arms = texts.map((text) => parseArm(text, defaults));
  if (arms.length === 0) throw new UsageFailure(`--arms: none is named; use ${DEFAULT_ARMS}`);
  const twice = arms.find((arm, i) => arms.findIndex((other) => other.name === arm.name) !== i);
  if (twice) throw new UsageFailure(`--arm: two arms are named ${twice.name}; give each a name of its own`);
  return arms;
}

function limitsFor(flags: BenchFlags, { info, memory }: InspectOutcome, capacity: number): { limits: Limits; cgroups: Cgroups | null; missing: string | null; device: string | null } {
  const none: Limits = { memoryBytes: null, read: null };
  if (!flags.cgroup) return { limits: none, cgroups: null, missing: 'control groups were not asked for: memory is not held equal, the disk is not throttled', device: null };
  const cacheBytes = info.expertBytes.reduce((sum, bytes) => sum + bytes * capacity, 0);
  const memoryBytes = flags.memory ?? memory.denseBytes + memory.kvBytes + cacheBytes + RESERVE_BYTES;
  const device = deviceOf(flags.model);
  const { bytesPerSecond, name } = flags.profile;
  if (bytesPerSecond !== null && device === null) throw new Failure(`${flags.model}: is on no block device, so its reads cannot be throttled to ${name}; move it to a disk, or use --profile raw`);
  const limits: Limits = { memoryBytes, read: bytesPerSecond === null ? null : { device: device!, bytesPerSecond } };
  const found = findCgroups(limits);
  if ('missing' in found) {
    throw new Failure(`memory cannot be held equal at ${formatSize(memoryBytes)}${limits.read ? `, nor the disk at ${name}` : ''}: ${found.missing}; --no-cgroup runs without`);
  }
  return { limits, cgroups: found.cgroups, missing: null, device };
}

/** Whether it can choose other experts than the model does. */
function bends({ settings: { routing: { routing, lambda } } }: EngineArm): boolean {
  return routing !== 'original' && !(routing === 'cache_prior' && [lambda].flat().every((each) => each === 0));
}

/** By the arm's name; those that leave the model its own routing have none to lose. */
async function scoreQuality(flags: BenchFlags, plan: BenchPlan, listener: { onProgress(fraction: number, what: string): void }, context: Context): Promise<Map<string, Quality>> {
  const scored = new Map<string, Quality>();
  if (flags.qualityModel === undefined) return scored;
  const bent = plan.arms.filter((arm): arm is EngineArm => arm.t === 'engine' && bends(arm));
  for (const [index, arm] of bent.entries()) {
    const outcome = await runEngineJob({
      t: 'evaluate', settings: { ...arm.settings, modelPath: flags.qualityModel }, text: plan.text, textPath: plan.textPath,
      tokens: flags.qualityTokens, context: 256, promptTokens: 0, stepped: false, compare: true, recordRoutes: false, recordScores: false,
    }, { onProgress: (fraction) => listener.onProgress((index + fraction) / bent.length, `perplexity of ${arm.name}:`) }, context.signal);
    scored.set(arm.name, qualityOf(outcome));
  }
  return scored;
}
