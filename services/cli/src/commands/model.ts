/** `moefleet model inspect|pack|widen`: model files, looked at and written; running them is `moefleet engine`. */
import { existsSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { integerFrom, sizeAbove } from '../argument';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { runEngineJob } from '../engine/engine-process';
import type { WriteJob, WriteOutcome } from '../engine/model-file-job';
import { EXIT, Failure, UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';
import { ByteRate } from '../byte-rate';
import { addModelInspect } from './model-inspect';

export function addModel(program: Command, context: Context): void {
  const model = addCommonOptions(program.command('model').description('model files: look at one, pack it for direct reads, make test models'), { operator: false });
  addModelInspect(model, context);
  addPack(model, context);
  addWiden(model, context);
}

interface WriteFlags { force?: boolean; }

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

/** A command that writes `target` from `source`; */
export function addWriteCommand<F>(model: Command, context: Context, text: { name: string; description: string; help: string },
  job: (files: { source: string; target: string; replace: boolean }, flags: F) => WriteJob): Command {
  const command = model.command(text.name).description(text.description)
    .argument('<source>', 'GGUF file of a Mixture-of-Experts model')
    .argument('<target>', 'file to write')
    .option('--force', 'replace the target if it is there')
    .addHelpText('after', text.help);
  return addCommonOptions(command, { operator: false }).action(async (source: string, target: string, flags: F & WriteFlags, self: Command) => {
    const replace = flags.force ?? false;
    if (!replace && existsSync(target)) throw new UsageFailure(`${target}: exists already; choose another name, or give --force to replace it`);
    const startedMs = Date.now();
    const outcome = await write(job({ source, target, replace }, flags), context);
    const seconds = (Date.now() - startedMs) / 1000;
    context.stdout.write(readCommonOptions(self, context.env).json
      ? jsonText({ path: target, ...outcome, seconds }) : `${writtenText(target, outcome, seconds)}\n`);
  });
}

async function write(job: WriteJob, context: Context): Promise<WriteOutcome> {
  const line = new ProgressLine(context.stderr);
  const rate = new ByteRate();
  try {
    return await runEngineJob(job, { onProgress: (fraction, what, bytes) => line.update(fraction, what, bytes && rate.text(bytes)) }, context.signal);
  } catch (error) {
    if (!(error instanceof Failure) || error.exitCode !== EXIT.interrupted || !existsSync(`${job.target}.part`)) throw error;
    throw new Failure(`interrupted; ${job.target}.part is kept: the same command goes on from there`, EXIT.interrupted, { cause: error });
  } finally {
    line.end();
  }
}

function writtenText(target: string, { bytes, keptBytes, width }: WriteOutcome, seconds: number): string {
  const kept = keptBytes > 0 ? `, of which an earlier attempt had written ${formatSize(keptBytes)}` : '';
  return `${target}: ${formatSize(bytes)} in ${seconds.toFixed(1)} s (${formatSize(bytes / seconds)}/s)${kept}${width === undefined ? '' : `, experts ${width} wide`}`;
}
