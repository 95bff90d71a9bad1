/** `moefleet measure`: has one device measure itself, through its own engine, with the spec in force. */
import { type Command, Option } from 'commander';
import type { MeasureResult } from '@moefleet/proto';
import { formatSize } from '@moefleet/runtime';
import { collect, integerFrom, numberFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { evictionName, routingName } from '../device-view';
import { Failure, UsageFailure } from '../failure';
import { jsonText, toJson } from '../json-text';
import { operatorAction, type Run } from '../operator-command';
import { ProgressLine } from '../progress-line';
import { capacityText, fixed, pairs, percent } from '../table';
import { readTextFile } from '../text-file';

export function addMeasure(program: Command, context: Context): void {
  const command = program.command('measure')
    .description('measure a device: generation from a cold cache, and what λ costs in quality')
    .argument('<id>', 'device id')
    .option('--prompts <file>', 'a file that holds one prompt; may be given several times', collect)
    .option('--prompt <text>', 'a prompt; may be given several times', collect)
    .addOption(new Option('--tokens <n>', 'tokens to generate from each prompt').argParser(integerFrom(1, 1_000_000)).default(64))
    .addOption(new Option('--temperature <t>', 'of the generation; 0 takes the likeliest token').argParser(numberFrom(0, 2)).default(0))
    .addOption(new Option('--seed <n>', 'prompt i is sampled with seed + i').argParser(integerFrom(0, 0xffff_0000)).default(0))
    .option('--text <file>', 'score this text at the λ in force and at 0')
    .addOption(new Option('--text-tokens <n>', 'tokens of the text to score; a multiple of --context').argParser(integerFrom(1, 10_000_000)).default(2048))
    .addOption(new Option('--context <n>', 'tokens per window of the text').argParser(integerFrom(2, 1 << 20)).default(256))
    .addHelpText('after', `
The first prompt starts from an empty expert cache. Rates are of the decode steps.

Examples:
  moefleet measure phone-1 --prompt "The city was founded in" --tokens 128
  moefleet measure phone-1 --prompts a.txt --prompts b.txt --text unseen.txt --text-tokens 4096 --json
`);
  addCommonOptions(command, { operator: true }).action(operatorAction(context)((run) => measure(context, run)));
}

async function measure(context: Context, run: Run): Promise<void> {
  const deviceId = run.args[0]!;
  const prompts = [
    ...((run.options['prompts'] ?? []) as string[]).map((path) => readTextFile('--prompts', path)),
    ...((run.options['prompt'] ?? []) as string[]),
  ];
  const textPath = run.options['text'] as string | undefined;
  const text = textPath === undefined ? '' : readTextFile('--text', textPath);
  const [tokens, textTokens, windowTokens] = ['tokens', 'textTokens', 'context'].map((name) => Number(run.options[name])) as [number, number, number];
  if (prompts.length === 0 && text === '') throw new UsageFailure('nothing to measure; give --prompt TEXT, --prompts FILE or --text FILE');
  const empty = prompts.findIndex((prompt) => prompt.trim() === '');
  if (empty >= 0) throw new UsageFailure(`prompt ${empty + 1} is empty; give it some text`);
  if (text !== '' && textTokens % windowTokens !== 0) {
    throw new UsageFailure(`--text-tokens: ${textTokens} is not a multiple of --context ${windowTokens}`);
  }

  const progress = new ProgressLine(context.stderr);
  let result: MeasureResult | undefined;
  await run.operator.measureDevice({
    deviceId,
    measure: { prompts, tokensPerPrompt: tokens, text, textTokens: text === '' ? 0 : textTokens, context: windowTokens, temperature: Number(run.options['temperature']), seed: Number(run.options['seed']) },
  }, ({ state }) => {
    if (state?.$case === 'progress') progress.update(state.value.fraction, `${deviceId}: ${state.value.what}`);
    if (state?.$case === 'result') result = state.value;
  }).finally(() => progress.end());
  if (!result) throw new Failure(`${deviceId}: the measurement ended without a result; try again`);
  const measured = measuredJson(deviceId, result);
  run.out(run.json ? jsonText(measured) : measuredText(measured));
}

/** Figures that do not exist are null: no decode, or no text. */
export function measuredJson(deviceId: string, result: MeasureResult) {
  const slots = Number(result.hits + result.misses);
  const decodeTokens = Number(result.decodeTokens);
  const scored = result.crossEntropy !== undefined && result.crossEntropyLambdaZero !== undefined;
  const windows = scored ? result.windowCrossEntropy.map((crossEntropy, i) => ({ crossEntropy, crossEntropyLambdaZero: result.windowCrossEntropyLambdaZero[i]! })) : [];
  const crossEntropyLoss = scored ? result.crossEntropy! - result.crossEntropyLambdaZero! : null;
  return {
    deviceId,
    spec: result.spec ? { ...result.spec, routing: routingName(result.spec.routing), eviction: evictionName(result.spec.eviction) } : null,
    generation: result.generation,
    decodeTokens,
    hits: result.hits,
    misses: result.misses,
    missRate: slots ? Number(result.misses) / slots : null,
    swapRate: slots ? Number(result.swaps) / slots : null,
    tokensPerSecond: result.decodeNs > 0n ? decodeTokens / (Number(result.decodeNs) / 1e9) : null,
    flashBytes: result.flashBytes,
    prefillMisses: result.prefillMisses,
    prefillFlashBytes: result.prefillFlashBytes,
    /** of the decode steps */
    flashBytesPerToken: decodeTokens ? Number(result.flashBytes - result.prefillFlashBytes) / decodeTokens : null,
    textTokens: result.textTokens,
    crossEntropy: result.crossEntropy ?? null,
    crossEntropyLambdaZero: result.crossEntropyLambdaZero ?? null,
    crossEntropyLoss,
    perplexityLossPercent: crossEntropyLoss === null ? null : Math.expm1(crossEntropyLoss) * 100,
    /** of the paired differences, window by window; null for fewer than two */
    crossEntropyLossStderr: stderrOf(windows.map((one) => one.crossEntropy - one.crossEntropyLambdaZero)),
    windows,
  };
}

function stderrOf(values: readonly number[]): number | null {
  if (values.length < 2) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1) / values.length);
}

function measuredText(measured: ReturnType<typeof measuredJson>): string {
  const { spec } = measured;
  const rows: [string, string][] = [['device', measured.deviceId]];
  if (spec) rows.push(['in force', `λ ${spec.lambdas.length > 0 ? spec.lambdas.join(',') : spec.lambda}, topJ ${spec.topJs.length > 0 ? spec.topJs.join(',') : spec.topJ}, ${spec.routing}, ${spec.eviction}, capacity ${capacityText(spec.capacities)} (${formatSize(Number(spec.cacheBytes))}), generation ${toJson(measured.generation)}`]);
  if (measured.decodeTokens > 0) {
    rows.push(['tokens/s', fixed(measured.tokensPerSecond, 1)]);
    rows.push(['miss rate', `${percent(measured.missRate, 2)} (${measured.misses} of ${measured.hits + measured.misses})`]);
    rows.push(['swap rate', percent(measured.swapRate, 2)]);
    rows.push(['flash per token', measured.flashBytesPerToken === null ? '-' : formatSize(Math.round(measured.flashBytesPerToken))]);
  }
  if (measured.crossEntropyLoss !== null) {
    rows.push(['cross-entropy', `${fixed(measured.crossEntropy, 4)} nats, ${fixed(measured.crossEntropyLambdaZero, 4)} at λ 0 (${measured.textTokens} tokens)`]);
    const stderr = measured.crossEntropyLossStderr === null ? '' : ` ± ${fixed(measured.crossEntropyLossStderr * 100, 2)} (one standard error over ${measured.windows.length} windows)`;
    rows.push(['perplexity loss', `${fixed(measured.perplexityLossPercent, 2)}%${stderr}`]);
  }
  return pairs(rows);
}
