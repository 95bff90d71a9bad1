/** `moefleet engine inspect|eval|generate`: the native engine on this machine, without a fleet. */
import { type Command, Option } from 'commander';
import type { EvalResult, Eviction, Prefetch, Routing, RoutingSpec } from '@moefleet/edge-agent/engine';
import { formatRoutes, formatWindows } from '@moefleet/replay';
import { formatSize } from '@moefleet/runtime';
import { integerFrom, listOf, numberFrom, sizeAbove } from '../argument';
import { type DiskProfile, parseProfile } from '../bench/disk-profile';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import type { EngineSettings, EvaluateOutcome, GenerateOutcome, InspectOutcome } from '../engine/engine-job';
import { type JobListener, runEngineJob } from '../engine/engine-process';
import { type PrefetchFigures, prefetchFigures } from '../engine/prefetch-figures';
import { UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';
import { capacityText, fixed, pairs, percent, table } from '../table';
import { readTextFile, refuseExisting, writeNewFile } from '../text-file';
import { recordedWindows } from './record-windows';
import { addSimulate } from './simulate';

/** Node and the libraries, beyond what the engine accounts for. */
const RESERVE_BYTES = 150 * 1024 ** 2;
const MIB = 1024 ** 2;
const VERIFY = 'check all that is read against the checksums of a packed file (see model pack)';

export interface EngineFlags {
  model: string; capacity?: number; cacheMib?: number;
  threads: number; lanes: number; prefill: number; directIo: boolean; disk?: DiskProfile; context?: number; verify?: boolean;
}

/** Absent on `inspect`, which routes nothing. */
export interface RoutingFlags {
  lambda: number | number[]; topJ: number | number[]; routing: Routing; maxRank: number; massThreshold: number; rank: number; seed: number;
  firstBiasedLayer: number; biasPrefill: boolean; eviction: Eviction; halfLife: number; prefetch: Prefetch;
}

/** Returns the group, for commands of other files. */
export function addEngine(program: Command, context: Context): Command {
  const engine = addCommonOptions(program.command('engine').description('the native engine on this machine: look at a model, score a text, generate, compare eviction policies'), { operator: false });
  addInspect(engine, context);
  addEval(engine, context);
  addSimulate(engine, context);
  addGenerate(engine, context);
  return engine;
}

function addInspect(engine: Command, context: Context): void {
  const command = addEngineOptions(engine.command('inspect').description('what a model is, and what memory it takes to run it'))
    .addOption(new Option('--context <n>', 'context in tokens; 0: the model\'s own').argParser(integerFrom(0, 1 << 20)).default(0))
    .addHelpText('after', '\nExamples:\n  moefleet engine inspect --model model.gguf\n  moefleet engine inspect --model model.gguf --cache-mib 512\n');
  addCommonOptions(command, { operator: false }).action(async (flags: EngineFlags, self: Command) => {
    const outcome = await runEngineJob({ t: 'inspect', settings: settings(flags, flags.context!) }, listen(context), context.signal);
    const inspected = inspectJson(outcome);
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(inspected) : inspectText(inspected));
  });
}

function addEval(engine: Command, context: Context): void {
  const command = addEngineOptions(addRoutingOptions(engine.command('eval')
    .description('cross-entropy of a text, and the misses on the way, under any routing and eviction')
    .requiredOption('--text <file>', 'UTF-8 text to score')))
    .addOption(new Option('--tokens <n>', 'tokens to score, a multiple of --context (default: all whole windows of the text)').argParser(integerFrom(1)))
    .addOption(new Option('--context <n>', 'tokens per window; each starts with an empty KV cache').argParser(integerFrom(1, 1 << 20)).default(256))
    .addOption(new Option('--prompt-tokens <p>', 'the first of each window are a prompt: routed by the model\'s own choice (see --bias-prefill) and not scored').argParser(integerFrom(0, 1 << 20)).default(0))
    .option('--windows', 'with --json: hits, misses, nats and running range means of every window')
    .option('--stepped', 'decode one token at a time through the real cache, instead of in batches against a virtual one')
    .addOption(new Option('--seed <n>', 'of --routing sensitivity').argParser(integerFrom(0)).default(0))
    .option('--record-routes <file>', 'write which experts every token used, for `engine simulate`; the file must not exist')
    .option('--record-windows <file>', 'write what the routers said of every token, for `moefleet replay`; the file must not exist')
    .option('--exact-windows', 'with --record-windows: four bytes a score instead of one, so that λ 0 is replayed exactly')
    .option('--verify', VERIFY)
    .option('--compare', 'also score with the model\'s own routing and print the loss')
    .addHelpText('after', `${ROUTING_HELP}
The text is tokenised as a whole, without a start token; N tokens are routed and scored, each on its next. The expert
cache starts empty once and lives on across windows.

Examples:
  moefleet engine eval --model model.gguf --text unseen.txt --lambda 0.3 --capacity 16 --compare
  moefleet engine eval --model model.gguf --text unseen.txt --tokens 4096 --cache-mib 64 --json
  moefleet engine eval --model model.gguf --text unseen.txt --capacity 16 --routing max_rank --max-rank 12 --compare
  moefleet engine eval --model model.gguf --text unseen.txt --capacity 16 --eviction lfu --half-life 64
  moefleet engine eval --model model.gguf --text unseen.txt --capacity 16 --lambda 0.3 --prompt-tokens 128 --bias-prefill
`);
  addCommonOptions(command, { operator: false }).action(async (flags: EngineFlags & RoutingFlags & EvalFlags, self: Command) => {
    const windowTokens = flags.context!;
    if (flags.tokens !== undefined && flags.tokens % windowTokens !== 0) {
      throw new UsageFailure(`--tokens: ${flags.tokens} is not a multiple of --context ${windowTokens}; use ${Math.max(1, Math.round(flags.tokens / windowTokens)) * windowTokens}`);
    }
    if (flags.promptTokens >= windowTokens) {
      throw new UsageFailure(`--prompt-tokens: ${flags.promptTokens} leaves nothing to score in a window of --context ${windowTokens}; use 0 to ${windowTokens - 1}`);
    }
    const text = readTextFile('--text', flags.text);
    if (flags.recordRoutes !== undefined) refuseExisting('--record-routes', flags.recordRoutes);
    if (flags.recordWindows !== undefined) refuseExisting('--record-windows', flags.recordWindows);
    if (flags.recordWindows !== undefined && flags.promptTokens > 0) throw new UsageFailure('--record-windows: not together with --prompt-tokens, as a prompt\'s last layer is not computed in full; leave one out');
    const outcome = await runEngineJob({
      t: 'evaluate', settings: settings(flags, windowTokens), text, textPath: flags.text, tokens: flags.tokens ?? null,
      context: windowTokens, promptTokens: flags.promptTokens, stepped: flags.stepped ?? false, compare: flags.compare ?? false,
      recordRoutes: flags.recordRoutes !== undefined, recordScores: flags.recordWindows !== undefined,
    }, listen(context), context.signal);
    if (flags.recordRoutes !== undefined) writeNewFile('--record-routes', flags.recordRoutes, formatRoutes(outcome.info, outcome.result.routes!, windowTokens, flags.promptTokens));
    if (flags.recordWindows !== undefined) writeNewFile('--record-windows', flags.recordWindows, formatWindows(await recordedWindows(outcome, windowTokens, flags.exactWindows ?? false)));
    const evaluated = evalJson(flags, outcome);
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(evaluated) : evalText(evaluated));
  });
}

interface EvalFlags { text: string; tokens?: number; promptTokens: number; windows?: boolean; stepped?: boolean; compare?: boolean; recordRoutes?: string; recordWindows?: string; exactWindows?: boolean; }

function addGenerate(engine: Command, context: Context): void {
  const command = addEngineOptions(addRoutingOptions(engine.command('generate')
    .description('continue a prompt, with experts read from disk into a bounded cache that starts empty')
    .requiredOption('--prompt <text>', 'what to continue')
    .addOption(new Option('--tokens <n>', 'most tokens to generate').argParser(integerFrom(1, 1 << 20)).default(128))))
    .option('--verify', VERIFY)
    .addOption(new Option('--temperature <t>', '0 takes the likeliest token').argParser(numberFrom(0, 100)).default(0))
    .addOption(new Option('--top-p <p>', 'sample from the smallest set of tokens with this probability').argParser(numberFrom(0, 1)).default(1))
    .addOption(new Option('--seed <n>', 'of the sampling, and of --routing sensitivity').argParser(integerFrom(0, 0xffffffff)).default(0))
    .addOption(new Option('--context <n>', 'context in tokens; 0: the model\'s own').argParser(integerFrom(0, 1 << 20)).default(0))
    .addHelpText('after', `${ROUTING_HELP}
Examples:
  moefleet engine generate --model model.gguf --prompt "The city was founded in" --tokens 64
  moefleet engine generate --model model.gguf --prompt "Once" --lambda 0.3 --cache-mib 64 --json
  moefleet engine generate --model model.gguf --prompt "Once" --cache-mib 64 --routing pruned --top-j 2 --bias-prefill
`);
  addCommonOptions(command, { operator: false }).action(async (flags: EngineFlags & RoutingFlags & GenerateFlags, self: Command) => {
    if (flags.prompt === '') throw new UsageFailure('--prompt: the prompt is empty; give it some text');
    const { json } = readCommonOptions(self, context.env);
    const outcome = await runEngineJob({
      t: 'generate', settings: settings(flags, flags.context!), prompt: flags.prompt, tokens: flags.tokens,
      temperature: flags.temperature, topP: flags.topP, seed: flags.seed,
    }, json ? listen(context) : { onProgress: () => {}, onText: (text) => void context.stdout.write(text) }, context.signal);
    const generated = generateJson(outcome);
    context.stdout.write(json ? jsonText(generated) : `\n\n${generateText(generated)}`);
  });
}

interface GenerateFlags { prompt: string; tokens: number; temperature: number; topP: number; }

export function addEngineOptions(command: Command): Command {
  return command
    .requiredOption('--model <file>', 'GGUF file of a Mixture-of-Experts model')
    .addOption(new Option('--capacity <n>', 'experts per layer that may be in memory (default: all)').argParser(integerFrom(1, 65_536)).conflicts('cacheMib'))
    .addOption(new Option('--cache-mib <m>', 'MiB of experts that may be in memory, over all layers').argParser(numberFrom(0, 1e9)))
    .addOption(new Option('--prefill <size>', 'expert bytes beyond the cache while a prompt is read; 0: one layer').argParser(sizeAbove(0)).default(0))
    .addOption(new Option('--threads <n>', 'compute threads; 0: physical cores but one').argParser(integerFrom(0, 1024)).default(0))
    .addOption(new Option('--lanes <n>', 'parallel flash reads; 0: the engine\'s default').argParser(integerFrom(0, 256)).default(0))
    .option('--no-direct-io', 'read through the page cache')
    .addOption(new Option('--disk <profile>', 'deliver experts no faster than emmc, ufs2.1, ufs3.1 or a speed such as 500MB/s would, one read after another').argParser(parseProfile).default(parseProfile('raw'), 'raw'));
}

export function addRoutingOptions(command: Command): Command {
  return command
    .addOption(new Option('--routing <how>', 'how experts are chosen; see below').choices([...ROUTINGS]).default('cache_prior'))
    .addOption(new Option('--lambda <x>', 'cache_prior: strength of the pull towards cached experts, in [0,1]; a,b,... gives one per layer').argParser(listOf(numberFrom(0, 1))).default(0))
    .addOption(new Option('--top-j <n>', 'how many of a token\'s best experts are never displaced (default: 2); a,b,... gives one per layer').argParser(listOf(integerFrom(0, 4096))))
    .addOption(new Option('--max-rank <m>', 'max_rank: prefer cached experts up to this rank (default: any)').argParser(integerFrom(1, 65_536)))
    .addOption(new Option('--mass-threshold <p>', 'cumulative_threshold: prefer cached experts up to the rank that holds this softmax mass (default: 0.9)').argParser(numberFrom(0, 1)))
    .addOption(new Option('--rank <r>', 'sensitivity: the rank to replace, 1 being a token\'s best expert (default: its worst)').argParser(integerFrom(1, 65_536)))
    .addOption(new Option('--first-biased-layer <n>', 'leave this many layers with experts, from the first, to the model').argParser(integerFrom(0, 65_536)).default(0))
    .option('--bias-prefill', 'route the prompt as decoding is, instead of by the model\'s own choice (in eval: of --prompt-tokens)')
    .addOption(new Option('--eviction <policy>', 'who leaves a full cache; see below').choices([...EVICTIONS]).default('adaptive'))
    .addOption(new Option('--half-life <tokens>', 'lfu, lfru: a use counts half after this many tokens; 0: uses do not age').argParser(numberFrom(0, 1e12)).default(0))
    .addOption(new Option('--prefetch <when>', 'read experts ahead that a later layer is likely to miss; auto: where that is measured to pay').choices(['auto', 'off', 'on']).default('off'));
}

const ROUTINGS = ['original', 'cache_prior', 'max_rank', 'cumulative_threshold', 'pruned', 'sensitivity'] as const satisfies readonly Routing[];
const EVICTIONS = ['lru', 'lfu', 'lfru', 'adaptive'] as const satisfies readonly Eviction[];

const ROUTING_HELP = `
Routing; the best --top-j experts of a token are always used, where a method displaces any:
  original              the model's own choice
  cache_prior           adds λ times the usual range of the router's logits to experts in the cache; λ 0 is the model's own
  max_rank              cached experts of rank up to --max-rank first, then the others by rank
  cumulative_threshold  the same, up to the rank at which a token's softmax mass reaches --mass-threshold
  pruned                the model's own, without those that miss: fewer experts per token, and no reads but for the best
  sensitivity           puts a random expert in the place of --rank, to see what that rank is worth
Eviction:
  lru       the least recently used
  lfu       the least used, counted since the start, in the cache or out of it
  lfru      the fewest uses per token since the last use
  adaptive  the one that the layer has learned to expect back last
`;

export function settings(flags: EngineFlags & Partial<RoutingFlags>, contextTokens: number): EngineSettings {
  return {
    modelPath: flags.model,
    routing: {
      routing: flags.routing ?? 'cache_prior', lambda: flags.lambda ?? 0, topJ: flags.topJ ?? null, maxRank: flags.maxRank ?? null,
      massThreshold: flags.massThreshold ?? 0.9, rank: flags.rank ?? null, seed: flags.seed ?? 0, firstBiasedLayer: flags.firstBiasedLayer ?? 0,
      biasPrefill: flags.biasPrefill ?? false, eviction: flags.eviction ?? 'adaptive', evictionHalfLifeTokens: flags.halfLife ?? 0, prefetch: flags.prefetch ?? 'off',
    },
    cache: flags.capacity !== undefined ? { t: 'capacity', capacity: flags.capacity }
      : flags.cacheMib !== undefined ? { t: 'bytes', bytes: Math.floor(flags.cacheMib * MIB) } : { t: 'all' },
    contextTokens, threads: flags.threads, lanes: flags.lanes, prefillBytes: flags.prefill, directIo: flags.directIo,
    readBytesPerSecond: flags.disk?.bytesPerSecond ?? 0, verify: flags.verify ?? false,
  };
}

function listen(context: Context): JobListener {
  const line = new ProgressLine(context.stderr);
  return { onProgress: (fraction, what) => (fraction >= 1 ? line.end() : line.update(fraction, what)) };
}

function inspectJson({ info, modelHash, engine, memory, capacities, contextTokens }: InspectOutcome) {
  const accounted = memory.denseBytes + memory.kvBytes + memory.computeBytes + memory.cacheBytes + memory.stagingBytes + memory.prefillBytes;
  return {
    ...without(info, 'tensors'), hash: modelHash, engine,
    allExpertsBytes: info.expertBytes.reduce((sum, bytes) => sum + bytes * info.experts, 0),
    capacities, contextTokens,
    memory: {
      denseBytes: memory.denseBytes, kvBytes: memory.kvBytes, computeBytes: memory.computeBytes, cacheBytes: memory.cacheBytes,
      stagingBytes: memory.stagingBytes, prefillBytes: memory.prefillBytes, reserveBytes: RESERVE_BYTES, totalBytes: accounted + RESERVE_BYTES, directIo: memory.directIo,
    },
  };
}

const SELECTS_BY = {
  logits: 'the router\'s logits',
  logits_biased: 'the router\'s logits after the gate\'s bias',
  selection_score: 'the final selection score (after gate, bias and expert groups)',
} as const;

function inspectText(model: ReturnType<typeof inspectJson>): string {
  const [least, most] = [Math.min(...model.expertBytes), Math.max(...model.expertBytes)];
  const { memory } = model;
  return pairs([
    ['model', `${model.name || '-'} (${model.architecture}), ${formatSize(model.fileBytes)}`],
    ['hash', model.hash],
    ['layers', `${model.layers}, of which ${model.moeLayers.length} hold experts`],
    ['experts', `${model.experts} per layer, top ${model.topK}${model.normalisesWeights ? ', weights normalised' : ''}`],
    ['selects by', SELECTS_BY[model.selectBy]],
    ['bytes per expert', least === most ? formatSize(least) : `${formatSize(least)} to ${formatSize(most)}`],
    ['all experts', formatSize(model.allExpertsBytes)],
    ['dense bytes', formatSize(model.denseBytes)],
    ['token cycle', `${formatSize(model.tokenCycleBytes)} (what one token touches)`],
    ['alignment', `${model.alignment} bytes; ${memory.directIo ? 'read around the page cache' : 'read through the page cache'}`],
    ['context', `${model.contextTokens} tokens (trained with ${model.contextTrain}), vocabulary ${model.vocab}`],
    ['engine', model.engine],
  ]) + `\nMemory with capacity ${capacityText(model.capacities)}:\n` + table(['', 'BYTES', ''], [
    ['dense', String(memory.denseBytes), formatSize(memory.denseBytes)],
    ['+ KV', String(memory.kvBytes), formatSize(memory.kvBytes)],
    ['+ compute', String(memory.computeBytes), formatSize(memory.computeBytes)],
    ['+ cache', String(memory.cacheBytes), formatSize(memory.cacheBytes)],
    ['+ staging', String(memory.stagingBytes), formatSize(memory.stagingBytes)],
    ['+ prefill', String(memory.prefillBytes), formatSize(memory.prefillBytes)],
    ['+ reserve', String(memory.reserveBytes), formatSize(memory.reserveBytes)],
    ['= at most', String(memory.totalBytes), formatSize(memory.totalBytes)],
  ], [1, 2]);
}

/** Nats and perplexity of one evaluation; `crossEntropyLoss` and what goes with it only where λ 0 was scored too. */
/** The spec in force; what only another method reads is left out. */
function specJson(spec: RoutingSpec) {
  return {
    routing: spec.routing, lambda: spec.lambdas ?? spec.lambda, topJ: spec.topJs ?? spec.topJ,
    ...(spec.routing === 'max_rank' ? { maxRank: spec.maxRank! } : {}),
    ...(spec.routing === 'cumulative_threshold' ? { massThreshold: spec.massThreshold! } : {}),
    ...(spec.routing === 'sensitivity' ? { rank: spec.rank!, seed: spec.seed! } : {}),
    firstBiasedLayer: spec.firstBiasedLayer!, biasPrefill: spec.biasPrefill!,
    eviction: spec.eviction!, evictionHalfLifeTokens: spec.evictionHalfLifeTokens!, prefetch: spec.prefetch!, capacities: spec.capacities,
  };
}

function specText(spec: ReturnType<typeof specJson>): string {
  const parts = [spec.routing as string];
  if (spec.routing === 'cache_prior') parts.push(`λ ${String(spec.lambda)}`);
  if (spec.maxRank !== undefined) parts.push(`max rank ${spec.maxRank}`);
  if (spec.massThreshold !== undefined) parts.push(`mass ${spec.massThreshold}`);
  if (spec.rank !== undefined) parts.push(`rank ${spec.rank}, seed ${spec.seed}`);
  if (spec.routing !== 'original' && spec.routing !== 'sensitivity') parts.push(`topJ ${String(spec.topJ)}`);
  if (spec.firstBiasedLayer > 0) parts.push(`from layer ${spec.firstBiasedLayer}`);
  const halfLife = spec.evictionHalfLifeTokens > 0 && spec.eviction !== 'lru' ? ` (half-life ${spec.evictionHalfLifeTokens})` : '';
  return [...parts, `capacity ${capacityText(spec.capacities)}`, `${spec.eviction}${halfLife}`].join(', ');
}

function evalJson(flags: EngineFlags & EvalFlags, { result, baseline, spec, counters, peakRssBytes }: EvaluateOutcome) {
  const loss = baseline ? result.crossEntropy - baseline.crossEntropy : null;
  return {
    ...specJson(spec), context: flags.context!, promptTokens: flags.promptTokens,
    ...without(result, 'tokenNll', 'routes', 'scores', 'steps', 'evalNs', ...(flags.windows ? [] : ['windows' as const])),
    perplexity: Math.exp(result.crossEntropy),
    seconds: result.evalNs / 1e9,
    ...(flags.stepped ? { prefetched: prefetchFigures(counters) } : {}),
    peakRssBytes,
    ...(baseline && loss !== null ? {
      crossEntropyLoss: loss,
      crossEntropyLossStderr: pairedStderr(result, baseline, flags.context! - flags.promptTokens),
      perplexityLossPercent: Math.expm1(loss) * 100,
      baseline: { crossEntropy: baseline.crossEntropy, perplexity: Math.exp(baseline.crossEntropy), missRate: baseline.missRate, misses: baseline.misses },
    } : {}),
  };
}

function without<T extends object, K extends keyof T>(value: T, ...keys: K[]): Omit<T, K> {
  return Object.fromEntries(Object.entries(value).filter(([key]) => !keys.includes(key as K))) as Omit<T, K>;
}

/** Standard error of the mean loss over windows, each window compared with itself; null for a single window. */
export function pairedStderr(result: EvalResult, baseline: EvalResult, scoredTokens: number): number | null {
  const windows = result.windows.length;
  if (windows < 2) return null;
  const losses = result.windows.map((window, index) => (window.nll - baseline.windows[index]!.nll) / scoredTokens);
  const mean = losses.reduce((sum, loss) => sum + loss, 0) / windows;
  const variance = losses.reduce((sum, loss) => sum + (loss - mean) ** 2, 0) / (windows - 1);
  return Math.sqrt(variance / windows);
}

/** Hits, misses and dropped. */
function slotsOf({ hits, misses, dropRate }: Pick<EvalResult, 'hits' | 'misses' | 'dropRate'>): number {
  return Math.round((hits + misses) / (1 - dropRate));
}

function evalText(figures: ReturnType<typeof evalJson>): string {
  const rows: [string, string][] = [
    ['routing', specText(figures)],
    ['tokens', `${figures.tokens} in windows of ${figures.context}${figures.promptTokens ? `, each behind a prompt of ${figures.promptTokens}` : ''}, ${fixed(figures.tokens / figures.seconds, 0)} per second`],
    ['cross-entropy', `${figures.crossEntropy.toFixed(5)} nats, perplexity ${figures.perplexity.toFixed(3)}`],
    ['miss rate', `${percent(figures.missRate, 2)} (${figures.misses} of ${slotsOf(figures)})`],
    ['swap rate', percent(figures.swapRate, 2)],
    ...(figures.promptTokens ? [['prompt misses', `${figures.promptMisses} of ${figures.promptHits + figures.promptMisses} experts of a layer and micro-batch`] as [string, string]] : []),
    ...(figures.routing === 'pruned' ? [['drop rate', percent(figures.dropRate, 2)] as [string, string]] : []),
    ['mass lost', figures.massLost.toFixed(5)],
    ['mean lifetime', figures.meanLifetimeTokens === null ? '- (nothing was evicted)' : `${figures.meanLifetimeTokens.toFixed(1)} tokens`],
  ];
  if (figures.baseline) {
    rows.push(['against its own', `${figures.crossEntropyLoss!.toFixed(5)} nats (± ${fixed(figures.crossEntropyLossStderr, 5)}), perplexity ${figures.perplexityLossPercent! >= 0 ? '+' : ''}${figures.perplexityLossPercent!.toFixed(2)}%`]);
    rows.push(['its own miss rate', percent(figures.baseline.missRate, 2)]);
  }
  return `${pairs(rows)}\n${table(['LAYER', 'CAPACITY', 'HITS', 'MISSES', 'MISS', 'SWAPS', 'MASS LOST', 'LIFETIME'], figures.perLayer.map((layer) => [
    String(layer.layer), String(layer.capacity), String(layer.hits), String(layer.misses), percent(layer.missRate, 2),
    percent(layer.swapRate, 2), layer.massLost.toFixed(5), fixed(layer.meanLifetimeTokens, 1),
  ]), [0, 1, 2, 3, 4, 5, 6, 7])}`;
}

function generateJson({ text, result, spec, memory, counters, peakRssBytes }: GenerateOutcome) {
  const slots = result.decodeHits + result.decodeMisses + result.decodeDropped;
  // The first token comes out of the prefill.
  const decoded = Math.max(0, result.completionTokens - 1);
  return {
    text, ...specJson(spec),
    promptTokens: result.promptTokens, completionTokens: result.completionTokens, finishReason: result.finishReason,
    tokensPerSecond: result.decodeNs > 0 ? decoded / (result.decodeNs / 1e9) : null,
    prefillSeconds: result.prefillNs / 1e9, decodeSeconds: result.decodeNs / 1e9, stallSeconds: result.stallNs / 1e9,
    hits: result.decodeHits, misses: result.decodeMisses, swaps: result.decodeSwaps, dropped: result.decodeDropped,
    missRate: slots ? result.decodeMisses / slots : null,
    swapRate: slots ? result.decodeSwaps / slots : null,
    prefillHits: result.prefillHits, prefillMisses: result.prefillMisses,
    flashBytes: result.flashBytes, flashReads: result.flashReads, peakExpertBytes: result.peakExpertBytes,
    prefetched: prefetchFigures(counters),
    memory: { ...memory, reserveBytes: RESERVE_BYTES }, peakRssBytes,
  };
}

function generateText(figures: ReturnType<typeof generateJson>): string {
  return pairs([
    ['tokens', `${figures.completionTokens} after a prompt of ${figures.promptTokens} (${figures.finishReason})`],
    ['tokens/s', fixed(figures.tokensPerSecond, 1)],
    ['misses', `${figures.misses} in decode (${percent(figures.missRate)}), ${figures.prefillMisses} in prefill`],
    ['flash', `${formatSize(figures.flashBytes)} in ${figures.flashReads} reads`],
    ['pre-fetch', prefetchText(figures.prefetched)],
    ['peak memory', formatSize(figures.peakRssBytes)],
  ]);
}

function prefetchText({ active, gain, recall, perLayer }: PrefetchFigures): string {
  const sum = (of: (layer: PrefetchFigures['perLayer'][number]) => number) => perLayer.reduce((total, layer) => total + of(layer), 0);
  if (recall === null) return active ? 'on' : 'off';
  const why = gain === null ? '' : `, ${percent(Math.abs(gain), 1)} of a token's time ${gain > 0 ? 'saved' : 'lost'} when it was tried`;
  return `${active ? 'on' : 'off'}${why}; ${sum((layer) => layer.ready)} misses ready, ${sum((layer) => layer.late)} late, ${formatSize(sum((layer) => layer.wastedBytes))} in vain`;
}
