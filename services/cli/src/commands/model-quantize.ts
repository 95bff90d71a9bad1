/** `moefleet model quantize`: experts in fewer bits, and what that costs. */
import { type Command, Option } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { integerFrom } from '../argument';
import type { Context } from '../context';
import type { EngineJob, EvaluateOutcome } from '../engine/engine-job';
import { runEngineJob } from '../engine/engine-process';
import type { WriteOutcome } from '../engine/model-file-job';
import { UsageFailure } from '../failure';
import { ProgressLine } from '../progress-line';
import { pairs } from '../table';
import { readTextFile } from '../text-file';
import { pairedStderr } from './engine';
import { addWriteCommand } from './model-write';

const CONTEXT_TOKENS = 256;

interface QuantizeFlags { type: string; downType?: string; allowRequantize?: boolean; threads: number; eval?: string; tokens?: number; }

export function addModelQuantize(model: Command, context: Context): void {
  const command = addWriteCommand<QuantizeFlags>(model, context, {
    name: 'quantize',
    description: 'write a copy whose experts have fewer bits; everything else stays as it is',
    help: `
Fewer bits per expert are fewer bytes to read for a miss, and more experts in the same memory. The library quantises; a
type that does not fit a matrix is an error that names those that do, never replaced. Blocks of 32 values: q4_0, q4_1,
q5_0, q5_1, q8_0, iq4_nl, mxfp4. Blocks of 256, so rows must be multiples of 256: q2_k, q3_k, q4_k, q5_k, q6_k, iq2_s,
iq3_xxs, iq3_s, iq4_xs. --eval scores a text with both files and prints the difference with its standard error.

Examples:
  moefleet model quantize model-f16.gguf model-q4.gguf --type q4_0
  moefleet model quantize model-f16.gguf model-q4.gguf --type q4_0 --down-type q5_0 --eval unseen.txt
`,
  }, (files, flags) => {
    if (flags.eval !== undefined) readTextFile('--eval', flags.eval);
    return { t: 'quantize', ...files, type: flags.type, downType: flags.downType ?? '', requantize: flags.allowRequantize ?? false, threads: flags.threads };
  }, async ({ source, target }, flags, outcome) => {
    const loss = flags.eval === undefined ? null : await measureLoss(source, target, flags, context);
    return { json: { type: flags.type, downType: flags.downType ?? flags.type, loss }, text: lossText(outcome, loss) };
  });
  command
    .requiredOption('--type <type>', 'of expert matrices, such as q4_0')
    .option('--down-type <type>', 'of the experts\' down matrices, which suffer most (default: as --type)')
    .option('--allow-requantize', 'also experts that are quantised already; the losses add up')
    .addOption(new Option('--threads <n>', 'compute threads; 0: physical cores but one').argParser(integerFrom(0, 512)).default(0))
    .option('--eval <file>', 'UTF-8 text to measure the loss on')
    .addOption(new Option('--tokens <n>', `tokens of the text to score, a multiple of ${CONTEXT_TOKENS} (default: all)`).argParser((text) => {
      const tokens = integerFrom(CONTEXT_TOKENS)(text);
      if (tokens % CONTEXT_TOKENS !== 0) throw new UsageFailure(`--tokens: ${tokens} is not a multiple of ${CONTEXT_TOKENS}; use ${Math.round(tokens / CONTEXT_TOKENS) * CONTEXT_TOKENS}`);
      return tokens;
    }));
}

interface Loss {
  tokens: number;
  before: { crossEntropy: number; perplexity: number };
  after: { crossEntropy: number; perplexity: number };
  crossEntropyLoss: number;
  /** over windows of 256 tokens, each compared with itself; null for a single window */
  crossEntropyLossStderr: number | null;
  perplexityLossPercent: number;
}

async function measureLoss(source: string, target: string, flags: QuantizeFlags, context: Context): Promise<Loss> {
  const [before, after] = [await score(source, flags, context), await score(target, flags, context)];
  const loss = after.result.crossEntropy - before.result.crossEntropy;
  return {
    tokens: after.result.tokens,
    before: { crossEntropy: before.result.crossEntropy, perplexity: Math.exp(before.result.crossEntropy) },
    after: { crossEntropy: after.result.crossEntropy, perplexity: Math.exp(after.result.crossEntropy) },
    crossEntropyLoss: loss, crossEntropyLossStderr: pairedStderr(after.result, before.result, CONTEXT_TOKENS), perplexityLossPercent: Math.expm1(loss) * 100,
  };
}

/** With the model's own routing, so that nothing but the weights differs. */
async function score(path: string, flags: QuantizeFlags, context: Context): Promise<EvaluateOutcome> {
  const line = new ProgressLine(context.stderr);
  const job: Extract<EngineJob, { t: 'evaluate' }> = {
    t: 'evaluate', text: readTextFile('--eval', flags.eval!), textPath: flags.eval!, tokens: flags.tokens ?? null, context: CONTEXT_TOKENS,
    promptTokens: 0, stepped: false, compare: false, recordRoutes: false, recordScores: false,
    settings: {
      modelPath: path, cache: { t: 'all' }, contextTokens: CONTEXT_TOKENS, threads: flags.threads, lanes: 0, prefillBytes: 0, directIo: true,
      routing: {
        routing: 'original', lambda: 0, topJ: null, maxRank: null, massThreshold: 0, rank: null, seed: 0, firstBiasedLayer: 0, biasPrefill: false,
        eviction: 'lru', evictionHalfLifeTokens: 0, prefetch: 'off',
      },
    },
  };
  return runEngineJob(job, { onProgress: (fraction) => line.update(fraction, `scoring ${path}`) }, context.signal).finally(() => line.end());
}

function lossText({ bytes, relativeError }: WriteOutcome, loss: Loss | null): string {
  const rows: [string, string][] = [['size', formatSize(bytes)], ['expert weights', `changed by ${((relativeError ?? 0) * 100).toFixed(2)}% (root mean square)`]];
  if (loss) {
    const sign = loss.perplexityLossPercent >= 0 ? '+' : '';
    const error = loss.crossEntropyLossStderr === null ? '' : ` ± ${loss.crossEntropyLossStderr.toFixed(5)}`;
    rows.push(
      ['before', `${loss.before.crossEntropy.toFixed(5)} nats, perplexity ${loss.before.perplexity.toFixed(3)} (${loss.tokens} tokens)`],
      ['after', `${loss.after.crossEntropy.toFixed(5)} nats, perplexity ${loss.after.perplexity.toFixed(3)}`],
      ['loss', `${loss.crossEntropyLoss.toFixed(5)}${error} nats, perplexity ${sign}${loss.perplexityLossPercent.toFixed(2)}%`],
    );
  }
  return pairs(rows);
}
