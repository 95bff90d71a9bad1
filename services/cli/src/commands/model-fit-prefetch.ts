/** `moefleet model fit-prefetch`: teaches pre-fetch what a model's later layers will choose. */
import { type Command, Option } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { integerFrom, numberFrom } from '../argument';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import type { FitOutcome } from '../engine/engine-job';
import { runEngineJob } from '../engine/engine-process';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';
import { percent, table } from '../table';
import { readTextFile } from '../text-file';
import { settings } from './engine';

interface FitFlags { text: string; tokens?: number; context: number; heldOut: number; capacity?: number; threads: number; }

export function addFitPrefetch(model: Command, context: Context): void {
  const command = model.command('fit-prefetch')
    .description('fit what pre-fetch foretells experts by, and keep it beside the model')
    .argument('<model>', 'GGUF file of a Mixture-of-Experts model')
    .requiredOption('--text <file>', 'UTF-8 text like that which the model will write; some 50,000 tokens are enough')
    .addOption(new Option('--tokens <n>', 'use that many, a multiple of --context (default: all whole windows of the text)').argParser(integerFrom(1)))
    .addOption(new Option('--context <n>', 'tokens per window').argParser(integerFrom(1, 1 << 20)).default(256))
    .addOption(new Option('--held-out <share>', 'share of the windows, at the end, to score instead').argParser(numberFrom(0, 1)).default(0.1))
    .addOption(new Option('--capacity <n>', 'experts per layer in memory when scoring (default: 40%)').argParser(integerFrom(1, 65_536)))
    .addOption(new Option('--threads <n>', 'compute threads; 0: physical cores but one').argParser(integerFrom(0, 1024)).default(0))
    .addHelpText('after', `
Writes <model>.prefetch: for each layer with experts but the first, a map from what the layer before it knows to its
router's scores. The engine takes it when it opens the model and foretells by the bare routers where there is none. It
fits every model with the same routers: copy it beside a packed or widened copy. It changes what is read ahead, never
the output.

SHARED is how much of a token's top-K is among the first K foretold; RECALL how many of the experts that were absent are
among the first 1.5 K absent ones foretold, with the cache and the routing of the model's own choice.

Examples:
  moefleet model fit-prefetch model.gguf --text train.txt
  moefleet model fit-prefetch model.gguf --text train.txt --tokens 51200 --capacity 16 --json
`);
  addCommonOptions(command, { operator: false }).action(async (path: string, flags: FitFlags, self: Command) => {
    const text = readTextFile('--text', flags.text);
    const line = new ProgressLine(context.stderr);
    const outcome = await runEngineJob({
      t: 'fitPrefetch', settings: settings({ model: path, threads: flags.threads, lanes: 0, prefill: 0, directIo: true }, flags.context),
      text, textPath: flags.text, tokens: flags.tokens ?? null, context: flags.context, heldOut: flags.heldOut, capacity: flags.capacity ?? null,
    }, { onProgress: (fraction, what) => line.update(fraction, what) }, context.signal).finally(() => line.end());
    const fitted = fittedJson(outcome);
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(fitted) : fittedText(fitted));
  });
}

function fittedJson({ result, tokens, heldOutTokens, capacity, topK }: FitOutcome) {
  const layers = result.layers.map((layer) => ({
    ...layer, recallBefore: layer.absent ? layer.foundBefore / layer.absent : null, recallAfter: layer.absent ? layer.foundAfter / layer.absent : null,
  }));
  const mean = (of: (layer: (typeof layers)[number]) => number | null) => {
    const values = layers.map(of).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  return {
    path: result.path, bytes: result.bytes, fittedTokens: tokens - heldOutTokens, heldOutTokens, capacity, guesses: topK + Math.floor(topK / 2),
    recallBefore: mean((layer) => layer.recallBefore), recallAfter: mean((layer) => layer.recallAfter), layers,
  };
}

function fittedText(fitted: ReturnType<typeof fittedJson>): string {
  const share = (value: number | null) => (value === null ? '-' : percent(value, 1));
  const rows = fitted.layers.map((layer) => [
    String(layer.layer), percent(layer.sharedBefore, 1), percent(layer.sharedAfter, 1), String(layer.absent), share(layer.recallBefore), share(layer.recallAfter),
  ]);
  rows.push(['mean', '', '', '', share(fitted.recallBefore), share(fitted.recallAfter)]);
  return `${fitted.path}: ${formatSize(fitted.bytes)}, fitted on ${fitted.fittedTokens} tokens\n`
    + `On ${fitted.heldOutTokens} others, ${fitted.capacity} experts in memory, ${fitted.guesses} guesses, by the bare routers and by the map:\n`
    + table(['LAYER', 'SHARED', 'FITTED', 'ABSENT', 'RECALL', 'FITTED'], rows, [0, 1, 2, 3, 4, 5]);
}
