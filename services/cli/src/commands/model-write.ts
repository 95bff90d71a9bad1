/** What the commands that write a model file have in common: a source, a target, --force, progress, and how an interruption ends. */
import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { ByteRate } from '../byte-rate';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { runEngineJob } from '../engine/engine-process';
import type { WriteJob, WriteOutcome } from '../engine/model-file-job';
import { EXIT, Failure, UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';

export interface WriteFiles { source: string; target: string; replace: boolean; }

/** What a command says beyond the file that it wrote. */
type Addition = { json: object; text: string };

export function addWriteCommand<F>(model: Command, context: Context, text: { name: string; description: string; help: string },
  job: (files: WriteFiles, flags: F) => WriteJob,
  add: (files: WriteFiles, flags: F, outcome: WriteOutcome) => Promise<Addition> = async () => ({ json: {}, text: '' })): Command {
  const command = model.command(text.name).description(text.description)
    .argument('<source>', 'GGUF file of a Mixture-of-Experts model')
    .argument('<target>', 'file to write')
    .option('--force', 'replace the target if it is there')
    .addHelpText('after', text.help);
  return addCommonOptions(command, { operator: false }).action(async (source: string, target: string, flags: F & { force?: boolean }, self: Command) => {
    const files = { source, target, replace: flags.force ?? false };
    if (!files.replace && existsSync(target)) throw new UsageFailure(`${target}: exists already; choose another name, or give --force to replace it`);
    const startedMs = Date.now();
    const outcome = await write(job(files, flags), context);
    const seconds = (Date.now() - startedMs) / 1000;
    const addition = await add(files, flags, outcome);
    context.stdout.write(readCommonOptions(self, context.env).json
      ? jsonText({ path: target, ...outcome, ...addition.json, seconds }) : `${writtenText(target, outcome, seconds)}\n${addition.text}`);
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
