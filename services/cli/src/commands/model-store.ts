/** `moefleet model push|list|remove|set|auto`: models in the coordinator's store, and which of them devices run. */
import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { formatSize, parseSize } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText, toJson } from '../json-text';
import { pushModel } from '../models/model-push';
import { operatorAction } from '../operator-command';
import { ProgressLine } from '../progress-line';
import { table } from '../table';
import { changing } from './change';

const DEADLINE_MS = 24 * 3_600_000;
/** A slower device would be cut off by the coordinator. */
const LEAST_RATE = 8192;
const QUIET_HOURS = /^((?:[01]\d|2[0-3]):[0-5]\d)-(?!\1)(?:[01]\d|2[0-3]):[0-5]\d$/;

export function addModelStore(model: Command, context: Context): void {
  const action = operatorAction(context);
  addCommonOptions(model.command('push')
    .description('bring a packed model to the coordinator, for devices to fetch')
    .argument('<file>', 'packed model (moefleet model pack)')
    .option('--name <name>', 'what it is called in the store (default: the file\'s name without .gguf)')
    .addHelpText('after', `
The file is verified first, then cut into chunks along its experts and tensors; those that the store has already, of another
version of the model say, are not sent again. A push that was interrupted goes on where it stopped. The coordinator keeps
models in its --artifact-dir or --artifact-s3. Nothing changes on devices: see \`moefleet model set\`.

Examples:
  moefleet model push model-packed.gguf
  moefleet model push model-packed.gguf --name qwen3-30b-q4-v2
`), { operator: true }).action(action(async ({ operator, args, options, json, out, note }) => {
    const path = args[0]!;
    if (!existsSync(path)) throw new UsageFailure(`${path}: no such file; write a packed model with: moefleet model pack SOURCE ${path}`);
    const line = new ProgressLine(context.stderr);
    const name = String(options['name'] ?? basename(path).replace(/\.gguf$/, ''));
    const { model, sentBytes, sentChunks } = await pushModel(operator, path, name, { progress: (fraction, what, detail) => line.update(fraction, what, detail), note }, context.signal).finally(() => line.end());
    out(json ? jsonText({ model: toJson(model), sentBytes, sentChunks })
      : `${model.name}: ${formatSize(Number(model.bytes))} in ${model.chunks} chunks; sent ${formatSize(sentBytes)}\ndevices get it with: moefleet model set ${model.name} --all\n`);
  }));

  addCommonOptions(model.command('list').alias('ls').description('models that devices can fetch')
    .addHelpText('after', `
Columns: OWN is what no model had that was pushed before; MANIFEST names the model in device specs, HASH is what the model
itself is known by, to which λ and measured surfaces belong.

Example:
  moefleet model list --json
`), { operator: true }).action(action(async ({ operator, json, out }) => {
    const models = await operator.listModels();
    if (json) return out(jsonText({ models: models.map((one) => toJson(one)) }));
    out(models.length === 0 ? 'no models yet; bring one with: moefleet model push FILE\n'
      : table(['NAME', 'SIZE', 'CHUNKS', 'OWN', 'MANIFEST', 'HASH', 'ADDED'], models.map(({ name, bytes, chunks, ownBytes, manifestSha256, modelHash, addedMs }) => [
        name, formatSize(Number(bytes)), String(chunks), formatSize(Number(ownBytes)), manifestSha256.slice(0, 12), modelHash.slice(0, 12), new Date(Number(addedMs)).toISOString(),
      ]), [1, 2, 3]));
  }));

  addCommonOptions(model.command('remove').description('take a model out of the store, with the chunks that no other model has')
    .argument('<name>', 'see moefleet model list')
    .addHelpText('after', '\nRefused while a device is asked to run it, or a rollout under way may bring it or go back to it.\n\nExample:\n  moefleet model remove qwen3-30b-q4-v1\n'), { operator: true })
    .action(action(async ({ operator, args, json, out }) => {
      const freedBytes = await operator.removeModel(args[0]!);
      out(json ? jsonText({ name: args[0], freedBytes }) : `${args[0]} removed: ${formatSize(freedBytes)} free\n`);
    }));

  changing(context, action, model.command('set')
    .description('have devices fetch this model of the store and run it; the one before is kept until the new one has served')
    .argument('<name>', 'see moefleet model list')
    .addOption(new Option('--bandwidth <rate>', 'most that each device fetches from the coordinator, such as 2MB/s; devices beside it are not counted').argParser(rateFrom))
    .addOption(new Option('--quiet-hours <from-to>', 'when nothing is fetched from the coordinator, by the device\'s clock, such as 08:00-18:00').argParser(quietHours)),
  `
λ is 0 with a model that nothing was measured for: a pinned λ, and what the learner has found, belong to a model each, and
are back when the device runs that model again. A stage waits a day for its devices to fetch (--deadline). Gates: errors==0,
perplexityRise<2% (over the model before, on the same text; both must have the same vocabulary), missRate<20%,
tokensPerSecond>=baseline.

Examples:
  moefleet model set qwen3-30b-q4-v2 --selector class=jetson --stages 1,10%,100% --soak 10m --gate 'perplexityRise<2%,errors==0'
  moefleet model set qwen3-30b-q4-v2 --all --bandwidth 2MB/s --quiet-hours 08:00-18:00
  moefleet model set qwen3-30b-q4-v2 --device board-1 --plan
`, ({ args, options }) => {
    stageAlways(options);
    const rate = options['bandwidth'] as number | undefined;
    return { $case: 'setModel', value: { name: args[0]!, bytesPerSecond: rate === undefined ? undefined : BigInt(rate), quietHours: String(options['quietHours'] ?? '') } };
  });
  changing(context, action, model.command('auto').description('leave devices the model that each was set up with'),
    '\nExample:\n  moefleet model auto --device board-1\n', ({ options }) => {
      stageAlways(options);
      return { $case: 'clearModel', value: {} };
    });
}

/** A model takes its time on its way: a rollout waits for it, a change at once would call its devices late. */
function stageAlways(options: Record<string, unknown>): void {
  if (!options['now']) options['deadline'] ??= DEADLINE_MS;
}

/** Bytes per second of `2MB/s`, `512KiB`. */
function rateFrom(text: string): number {
  let rate: number;
  try {
    rate = parseSize(text.trim().replace(/\/s$/, ''));
  } catch {
    throw new InvalidArgumentError('Write bytes per second with a unit, such as 2MB/s or 512KiB/s.');
  }
  if (rate < LEAST_RATE) throw new InvalidArgumentError(`Write at least ${LEAST_RATE} bytes per second.`);
  return rate;
}

function quietHours(text: string): string {
  if (!QUIET_HOURS.test(text)) throw new InvalidArgumentError('Write two times of day, such as 08:00-18:00 or 22:00-06:00.');
  return text;
}
