/** `moefleet replay`: what a recorded run would have missed under other settings. */
import { type Command, Option } from 'commander';
import { EngineError } from '@moefleet/edge-agent/engine';
import type { Device } from '@moefleet/proto';
import {
  costOfCounters, type Grid, POLICIES, readTrace, replay, type ReplayOptions, type ReplayRow, replaySvg, ROUTINGS, type Setting, settingsOf, type TokenCost, type Trace, TraceError, traceOfWindows,
} from '@moefleet/replay';
import { integerFrom, namesOf, numberFrom, rangesOf } from '../argument';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { operatorAction } from '../operator-command';
import type { OperatorConnection } from '../operator-connection';
import { ProgressLine } from '../progress-line';
import { fixed, percent, table } from '../table';
import { readFileBytes, writeFileOver } from '../text-file';

export interface ReplayFlags {
  trace?: string; device?: string; phase?: number; warmUp: number;
  lambda: number[]; capacity: number[]; policy: Grid['policies']; routing: Grid['routings']; topJ?: number[]; maxRank?: number[]; massThreshold: number[]; halfLife: number;
  computeMs?: number; missMs?: number; readRate?: number;
  perLayer?: boolean; svg?: string;
}

const DEFAULT_TOP_J = 2;
const MIB = 1024 * 1024;
/** Of telemetry; after fewer the learner knows little of the device itself. */
const LEARNT_WINDOWS = 3n;

export function addReplay(program: Command, context: Context): void {
  const command = program.command('replay')
    .description('what a recorded run would have missed under another λ, cache size, routing or eviction, by the engine\'s own routing and cache code')
    .addOption(new Option('--trace <file>', 'router windows (`engine eval --record-windows`), or a route file of BigMoeOnEdge\'s format (λ 0 alone)').conflicts('device'))
    .addOption(new Option('--device <id>', 'what the fleet keeps of a device (`moefleet windows enable ID`)'))
    .addOption(new Option('--capacity <list>', 'experts per layer that the cache holds: values and ranges, such as 8:32:4').argParser(rangesOf(integerFrom(1, 65_536))).makeOptionMandatory())
    .addOption(new Option('--lambda <list>', 'of cache_prior; 0 is the model\'s own routing').argParser(rangesOf(numberFrom(0, 1))).default([0], '0'))
    .addOption(new Option('--policy <names>', `who leaves a full cache, some of ${POLICIES.join(',')}; belady knows the future and bounds the others at λ 0`).argParser(namesOf(POLICIES)).default(['adaptive'], 'adaptive'))
    .addOption(new Option('--routing <names>', `some of ${ROUTINGS.join(',')}`).argParser(namesOf(ROUTINGS)).default(['cache_prior'], 'cache_prior'))
    .addOption(new Option('--top-j <list>', 'how many of a token\'s best experts are never displaced (default: 2)').argParser(rangesOf(integerFrom(0, 128))))
    .addOption(new Option('--max-rank <list>', 'of max_rank (default: any resident expert)').argParser(rangesOf(integerFrom(1, 65_536))))
    .addOption(new Option('--mass-threshold <list>', 'of cumulative_threshold').argParser(rangesOf(numberFrom(0, 1))).default([0.9], '0.9'))
    .addOption(new Option('--half-life <tokens>', 'lfu, lfru: a use counts half after this many tokens; 0: uses do not age').argParser(numberFrom(0, 1e12)).default(0))
    .addOption(new Option('--warm-up <tokens>', 'the first tokens fill the caches and are not counted').argParser(integerFrom(0, 1 << 30)).default(0))
    .addOption(new Option('--phase <n>', 'of a route file (default: the rows recorded token by token)').argParser(integerFrom(0, 255)))
    .addOption(new Option('--compute-ms <ms>', 'of a token with every expert in memory; with --miss-ms or --read-rate tokens/s are predicted').argParser(numberFrom(0.000001, 1e9)))
    .addOption(new Option('--miss-ms <ms>', 'by which one miss holds a token up').argParser(numberFrom(0, 1e9)).conflicts('readRate'))
    .addOption(new Option('--read-rate <MB/s>', 'of the disk, from which the cost of a miss follows').argParser(numberFrom(0.001, 1e9)))
    .option('--per-layer', 'also each layer\'s figures')
    .option('--svg <file>', 'write a plot instead of the table')
    .addHelpText('after', `
Every layer begins with an empty cache; a token's experts are looked up, touched, admitted and others evicted as one event.
At λ 0 the figures are those of the device. Under any other setting than the recorded one the replay is open-loop: it does not
know how bent routing would have changed the model's state, and so what its routers would have said. ± is how far closed-loop
runs were from such a replay (services/replay/README.md). Tokens/s of a device are predicted as the learner does, from its model
of the device (moefleet learner explain), and where it has none from the device's counters.

Examples:
  moefleet engine eval --model model.gguf --text unseen.txt --record-windows run.windows
  moefleet replay --trace run.windows --capacity 8:32:4 --lambda 0,0.1,0.2,0.3 --top-j 1,2
  moefleet replay --trace run.windows --capacity 16 --routing original,max_rank,pruned --policy lru,adaptive --json
  moefleet replay --trace phone.route.csv --capacity 16,32,64 --policy lru,lfu,lfru,belady
  moefleet replay --device phone-1 --capacity 8:24:4 --lambda 0,0.1,0.2
  moefleet replay --trace run.windows --capacity 6:32 --policy lru --compute-ms 20 --read-rate 700 --svg curve.svg
`);
  addCommonOptions(command, { operator: true }).action((flags: ReplayFlags, self: Command) => (flags.device === undefined ? replayFile(context, flags, self) : replayDevice(context, flags, self)));
}

async function replayFile(context: Context, flags: ReplayFlags, command: Command): Promise<void> {
  const path = flags.trace;
  if (path === undefined) throw new UsageFailure('no record given; name one with --trace FILE or --device ID');
  const trace = await asUsage(() => readTrace(path, readFileBytes('--trace', path), flags.phase ?? null));
  await report(context, flags, trace, costOf(flags, trace), readCommonOptions(command, context.env).json);
}

/** Where the costs are not given they are what the learner has found of the device, or what its counters say. */
async function replayDevice(context: Context, flags: ReplayFlags, command: Command): Promise<void> {
  await operatorAction(context)(async ({ operator, json }) => {
    const deviceId = flags.device!;
    const device = await operator.getDevice(deviceId);
    const trace = await asUsage(async () => traceOfWindows(deviceId, await operator.readWindows(deviceId)));
    await report(context, flags, trace, costOf(flags, trace) ?? await costOfLearner(operator, device) ?? costOfDevice(device), json);
  })(command);
}

/** The learner's own model: compute + reading x MiB missed. null where it knows too little, or the coordinator cannot be asked. */
async function costOfLearner(operator: OperatorConnection, { id, info }: Device): Promise<TokenCost | null> {
  const knowledge = (await operator.explainLearner(id).catch(() => null))?.knowledge;
  const model = info?.model;
  const { mean, windows = 0n } = knowledge?.speed ?? {};
  if (!mean || !model || knowledge!.modelHash !== model.hash || windows < LEARNT_WINDOWS || model.expertBytes.length === 0) return null;
  const expertMib = model.expertBytes.reduce((sum, bytes) => sum + Number(bytes), 0) / model.expertBytes.length / MIB;
  return { computeMs: mean.compute, missMs: mean.reading * expertMib };
}

function costOfDevice({ telemetry }: Device): TokenCost | null {
  if (!telemetry) return null;
  const misses = telemetry.decodeSlots ? telemetry.decodeSlots.misses : telemetry.layers.reduce((sum, layer) => sum + layer.misses, 0n);
  const prefillMisses = telemetry.layers.reduce((sum, layer) => sum + layer.prefillMisses, 0n);
  return costOfCounters({
    decodeTokens: Number(telemetry.decodeTokens), decodeNs: Number(telemetry.decodeNs), stallNs: Number(telemetry.stallNs), misses: Number(misses), prefillMisses: Number(prefillMisses),
  });
}

async function report(context: Context, flags: ReplayFlags, trace: Trace, cost: TokenCost | null, json: boolean): Promise<void> {
  for (const reason of trace.skipped) context.stderr.write(`left out: ${reason}\n`);
  const rows = await replayGrid(context, trace, gridOf(flags, trace), { uncountedTokens: flags.warmUp, cost });
  if (flags.svg !== undefined) {
    writeFileOver('--svg', flags.svg, replaySvg(trace.source, rows));
    context.stderr.write(`${flags.svg}: ${rows.length} points\n`);
    if (!json) return;
  }
  context.stdout.write(json ? jsonText({ ...headJson(trace), rows: rows.map(({ perLayer, ...row }) => ({ ...row, ...(flags.perLayer ? { perLayer } : {}) })) }) : replayText(trace, rows, flags.perLayer ?? false));
}

/** Shared with `engine simulate`. */
export async function replayGrid(context: Context, trace: Trace, grid: Grid, options: ReplayOptions = {}): Promise<ReplayRow[]> {
  const line = new ProgressLine(context.stderr);
  return asUsage(() => replay(trace, settingsOf(grid, trace), { ...options, onProgress: (fraction) => line.update(fraction, 'replaying'), signal: context.signal }))
    .finally(() => line.end());
}

/** What the caller gave makes no sense: exit code 2. */
export async function asUsage<T>(work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof TraceError || (error instanceof EngineError && (error.code === 'BAD_ARGUMENT' || error.code === 'CAPACITY'))) throw new UsageFailure(error.message, { cause: error });
    throw error;
  }
}

function gridOf(flags: ReplayFlags, { topK, experts }: Trace): Grid {
  return {
    routings: flags.routing, lambdas: flags.lambda, topJs: flags.topJ ?? [Math.min(DEFAULT_TOP_J, topK)], maxRanks: flags.maxRank ?? [experts],
    massThresholds: flags.massThreshold, policies: flags.policy, halfLifeTokens: flags.halfLife, capacities: flags.capacity,
  };
}

function costOf({ computeMs, missMs, readRate }: ReplayFlags, { source, expertBytes }: Trace): TokenCost | null {
  if (computeMs === undefined && missMs === undefined && readRate === undefined) return null;
  if (computeMs === undefined) throw new UsageFailure('--compute-ms: needed to predict tokens/s; give what a token takes with every expert in memory (`moefleet engine generate` without --capacity)');
  if (missMs !== undefined) return { computeMs, missMs };
  if (readRate === undefined) throw new UsageFailure('--miss-ms or --read-rate: one is needed to predict tokens/s');
  if (!expertBytes) throw new UsageFailure(`--read-rate: ${source} does not say how many bytes an expert has; give --miss-ms instead`);
  return { computeMs, missMs: expertBytes.reduce((sum, bytes) => sum + bytes, 0) / expertBytes.length / (readRate * 1000) };
}

function headJson({ source, kind, experts, topK, layers, layerEvents, bent, skipped, phase }: Trace) {
  return { trace: source, kind, experts, topK, layers, events: layerEvents.reduce((sum, each) => sum + each, 0), phase, recordedUnderPull: bent, skipped };
}

function replayText(trace: Trace, rows: readonly ReplayRow[], perLayer: boolean): string {
  const { kind, layers, topK, experts, events, phase } = headJson(trace);
  const head = `${trace.source}: ${events} events in ${layers.length} layers, ${topK} of ${experts} experts each, ${kind}${phase === null ? '' : `, phase ${phase}`}\n\n`;
  const total = table(['ROUTING', 'POLICY', 'CAPACITY', 'MISS RATE', '±', 'SWAPS', 'MASS LOST', 'LIFETIME', 'MISSES/TOKEN', 'TOKENS/S'], rows.map((row) => [
    settingText(row), row.policy, String(row.capacity), percent(row.missRate, 2), bandText(row), percent(row.swapRate, 2), row.massLost.toFixed(5), fixed(row.meanLifetimeTokens, 1),
    row.missesPerToken.toFixed(2), fixed(row.tokensPerSecond, 2),
  ]), [2, 3, 4, 5, 6, 7, 8, 9]);
  if (!perLayer) return head + total;
  return `${head}${total}\n${table(['ROUTING', 'POLICY', 'CAPACITY', 'LAYER', 'MISSES', 'MISS RATE', 'SWAPS', 'LIFETIME'], rows.flatMap((row) => row.perLayer.map((layer) => [
    settingText(row), row.policy, String(row.capacity), String(layer.layer), String(layer.misses), percent(layer.missRate, 2), percent(layer.swapRate, 2), fixed(layer.meanLifetimeTokens, 1),
  ])), [2, 3, 4, 5, 6, 7])}`;
}

function settingText({ routing, lambda, topJ, maxRank, massThreshold }: Setting): string {
  const parts: string[] = [routing];
  if (lambda !== null) parts.push(`λ ${lambda}`);
  if (maxRank !== null) parts.push(`rank ${maxRank}`);
  if (massThreshold !== null) parts.push(`mass ${massThreshold}`);
  if (topJ !== null && lambda !== 0) parts.push(`topJ ${topJ}`);
  return parts.join(' ');
}

/** In points; `exact` where nothing can be off. */
function bandText({ missRateBand: band, missRate }: ReplayRow): string {
  if (!band) return 'exact';
  return (Math.max(band.high - missRate, missRate - band.low) * 100).toFixed(2);
}
