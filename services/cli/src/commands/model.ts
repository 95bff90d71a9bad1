/** `moefleet model widen`: a small model with experts of a realistic size. */
import type { Command } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { integerFrom } from '../argument';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { runEngineJob } from '../engine/engine-process';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';

export function addModel(program: Command, context: Context): void {
  const model = addCommonOptions(program.command('model').description('model files'), { operator: false });
  const command = model.command('widen')
    .description('write a copy whose experts are wider, and do the same: the added rows and columns cancel out')
    .argument('<source>', 'GGUF file of a Mixture-of-Experts model')
    .argument('<target>', 'file to write; must not exist')
    .requiredOption('--width <n>', 'hidden width of each expert in the copy', integerFrom(1, 1 << 24))
    .addHelpText('after', '\nExample:\n  moefleet model widen tiny.gguf wide.gguf --width 8192\n');
  addCommonOptions(command, { operator: false }).action(async (source: string, target: string, flags: { width: number }, self: Command) => {
    const line = new ProgressLine(context.stderr);
    const { bytes } = await runEngineJob({ t: 'widen', source, target, width: flags.width },
      { onProgress: (fraction, what) => line.update(fraction, what) }, context.signal).finally(() => line.end());
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText({ path: target, bytes, width: flags.width }) : `${target}: ${formatSize(bytes)}\n`);
  });
}
