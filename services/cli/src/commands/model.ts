/** `moefleet model`: model files, looked at and written (running them is `moefleet engine`), and those in the coordinator's store. */
import { type Command, Option } from 'commander';
import { integerFrom, sizeAbove } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { addFitPrefetch } from './model-fit-prefetch';
import { addModelInspect } from './model-inspect';
import { addModelStore } from './model-store';
import { addModelQuantize } from './model-quantize';
import { addWriteCommand } from './model-write';

export function addModel(program: Command, context: Context): void {
  const model = addCommonOptions(program.command('model').description('model files: look at one, pack it for direct reads, quantise its experts, bring it to the fleet'), { operator: false });
  addModelInspect(model, context);
  addPack(model, context);
  addWiden(model, context);
  addModelQuantize(model, context);
  addFitPrefetch(model, context);
  addModelStore(model, context);
}

function addPack(model: Command, context: Context): void {
  addWriteCommand(model, context, {
    name: 'pack',
    description: 'write a copy with tensors on 4 KiB boundaries and a SHA-256 of every expert and every other tensor',
    help: `
The copy is a GGUF like any other: the stock llama.cpp loads it, and all metadata is kept. Checksums are verified by
model inspect --verify, and on every read by --verify of engine and agent run. An interrupted pack goes on where it
stopped when it is run again: what it left in <target>.part is compared with the source first.

Its identity differs from the source's, as the header does: λ and capacities learnt for the one are not the other's.

Examples:
  moefleet model pack model.gguf model-packed.gguf
  moefleet model inspect model-packed.gguf --verify
`,
  }, ({ source, target, replace }) => ({ t: 'pack', source, target, replace }));
}

interface WidenFlags { width?: number; expertSize?: number; total?: number; }

function addWiden(model: Command, context: Context): void {
  const command = addWriteCommand<WidenFlags>(model, context, {
    name: 'widen',
    description: 'write a copy whose experts are wider, and do the same: the added rows and columns cancel out',
    help: `
For measurements: a small model gets experts of a realistic size, with the same routing and the same text. The copy is
written in full, packed, in the source's types. Of a size, the least width is taken that reaches it and puts every
expert's matrices on whole 4 KiB blocks.

Examples:
  moefleet model widen tiny.gguf wide.gguf --width 8192
  moefleet model widen tiny.gguf wide.gguf --expert-size 24MiB
  moefleet model widen tiny.gguf wide.gguf --total 4GiB
`,
  }, ({ source, target, replace }, flags) => ({ t: 'widen', source, target, replace, size: sizeOf(flags) }));
  command
    .addOption(new Option('--width <n>', 'hidden width of each expert').argParser(integerFrom(1, 1 << 20)).conflicts(['expertSize', 'total']))
    .addOption(new Option('--expert-size <size>', 'bytes of each expert, at least').argParser(sizeAbove(1)).conflicts(['width', 'total']))
    .addOption(new Option('--total <size>', 'bytes of all experts together, at least').argParser(sizeAbove(1)).conflicts(['width', 'expertSize']));
}

function sizeOf({ width, expertSize, total }: WidenFlags) {
  if (width !== undefined) return { width };
  if (expertSize !== undefined) return { expertBytes: expertSize };
  if (total !== undefined) return { totalBytes: total };
  throw new UsageFailure('how wide? give one of --width, --expert-size and --total, such as --expert-size 24MiB');
}
