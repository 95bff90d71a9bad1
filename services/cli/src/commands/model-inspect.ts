/**
 * `moefleet model inspect`: what a model file holds and how it lies on the disk, from its header alone; with --verify
 * also whether all of it is as it was packed. What it takes to run the model is `moefleet engine inspect`.
 */
import type { Command } from 'commander';
import type { CheckResult, ModelInfo, TensorPlace } from '@moefleet/edge-agent/engine';
import { formatSize } from '@moefleet/runtime';
import { ByteRate } from '../byte-rate';
import { addCommonOptions, readCommonOptions } from '../config';
import type { Context } from '../context';
import { runEngineJob } from '../engine/engine-process';
import { Failure } from '../failure';
import { jsonText } from '../json-text';
import { ProgressLine } from '../progress-line';
import { pairs, percent, table } from '../table';

/** What O_DIRECT asks of offset, address and size. */
const BLOCK_BYTES = 4096;
const NAMED = 10;

export function addModelInspect(model: Command, context: Context): void {
  const command = model.command('inspect')
    .description('what a model file holds, how it is laid out, and whether it is packed')
    .argument('<file>', 'GGUF file of a Mixture-of-Experts model')
    .option('--verify', 'read all of a packed file and compare it with its checksums')
    .addHelpText('after', `
What it takes to run the model, memory above all, is said by: moefleet engine inspect --model <file>

Examples:
  moefleet model inspect model.gguf
  moefleet model inspect model-packed.gguf --verify
  moefleet model inspect model.gguf --json
`);
  addCommonOptions(command, { operator: false }).action(async (path: string, flags: { verify?: boolean }, self: Command) => {
    const { info } = await runEngineJob({ t: 'inspectFile', path }, { onProgress: () => {} }, context.signal);
    const check = flags.verify ? await verify(path, context) : null;
    const inspected = { ...fileJson(info), check };
    context.stdout.write(readCommonOptions(self, context.env).json ? jsonText(inspected) : inspectText(inspected));
    if (check && check.damagedCount > 0) {
      const named = check.damaged.slice(0, NAMED).join(', ') + (check.damagedCount > NAMED ? ', ...' : '');
      throw new Failure(`${path}: ${check.damagedCount} of its parts are damaged (${named}); fetch the file again`);
    }
  });
}

async function verify(path: string, context: Context): Promise<CheckResult> {
  const line = new ProgressLine(context.stderr);
  const rate = new ByteRate();
  return runEngineJob({ t: 'check', path }, { onProgress: (fraction, what, bytes) => line.update(fraction, what, bytes && rate.text(bytes)) }, context.signal)
    .finally(() => line.end());
}

interface Kind { kind: string; type: string; tensors: number; bytes: number; }

/** A matrix of every expert of one layer. `direct`: each expert's part lies on whole blocks. */
interface ExpertMatrix { layer: number; tensor: string; type: string; offset: number; expertBytes: number; direct: boolean; }

function fileJson(info: ModelInfo) {
  const matrices = expertMatrices(info);
  return {
    path: info.path, files: info.files, fileBytes: info.fileBytes, name: info.name, architecture: info.architecture, alignment: info.alignment, packVersion: info.packVersion,
    layers: info.layers, moeLayers: info.moeLayers, experts: info.experts, topK: info.topK, expertBytes: info.expertBytes, denseBytes: info.denseBytes,
    expertMatrices: matrices.length, directExpertMatrices: matrices.filter(({ direct }) => direct).length,
    kinds: kindsOf(info.tensors), matrices, tensors: info.tensors,
  };
}

function expertMatrices(info: ModelInfo): ExpertMatrix[] {
  return info.tensors.flatMap((tensor) => {
    const match = /^blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight$/.exec(tensor.name);
    const layer = Number(match?.[1]);
    if (!match || !info.moeLayers.includes(layer)) return [];
    const expertBytes = tensor.bytes / info.experts;
    const direct = tensor.offset % BLOCK_BYTES === 0 && expertBytes % BLOCK_BYTES === 0;
    return [{ layer, tensor: tensor.name, type: tensor.type, offset: tensor.offset, expertBytes, direct }];
  });
}

function kindsOf(tensors: readonly TensorPlace[]): Kind[] {
  const kinds = new Map<string, Kind>();
  for (const { name, type, bytes } of tensors) {
    const kind = kindOf(name);
    const row = kinds.get(`${kind}/${type}`) ?? { kind, type, tensors: 0, bytes: 0 };
    row.tensors += 1;
    row.bytes += bytes;
    kinds.set(`${kind}/${type}`, row);
  }
  return [...kinds.values()].sort((a, b) => b.bytes - a.bytes);
}

/** By llama.cpp's tensor names. */
function kindOf(name: string): string {
  const expert = /\.ffn_(gate_up|gate|up|down)_exps\.(\w+)$/.exec(name);
  if (expert) return `expert ${expert[1]}${expert[2] === 'weight' ? '' : ` ${expert[2]}`}`;
  if (/shexp/.test(name)) return 'shared expert';
  if (/ffn_gate_inp|exp_probs_b/.test(name)) return 'router';
  if (/norm/.test(name)) return 'norm';
  if (/\.ffn_/.test(name)) return 'dense feed-forward';
  if (/\.attn_/.test(name)) return 'attention';
  if (/^token_embd|^output\./.test(name)) return 'embedding, output';
  return 'other';
}

function inspectText(file: ReturnType<typeof fileJson> & { check: CheckResult | null }): string {
  const [least, most] = [Math.min(...file.expertBytes), Math.max(...file.expertBytes)];
  const { check } = file;
  return pairs([
    ['file', `${file.path}${file.files.length > 1 ? ` and ${file.files.length - 1} more` : ''}, ${formatSize(file.fileBytes)}`],
    ['model', `${file.name || '-'} (${file.architecture}), ${file.layers} layers`],
    ['experts', `${file.experts} in each of ${file.moeLayers.length} layers, top ${file.topK}; ${least === most ? formatSize(least) : `${formatSize(least)} to ${formatSize(most)}`} each`],
    ['dense', formatSize(file.denseBytes)],
    ['alignment', `${file.alignment} bytes`],
    ['direct reads', directText(file)],
    ['checksums', file.packVersion === 0 ? 'none; write a copy that has them with: moefleet model pack' : 'SHA-256 of every expert and every other tensor'],
    ...(check ? [['verified', check.damagedCount === 0 ? `${formatSize(check.checkedBytes)}, all as it was packed` : `${check.damagedCount} parts are damaged`] as [string, string]] : []),
  ]) + `\n${table(['TENSORS', 'TYPE', 'COUNT', 'BYTES', 'SHARE'], file.kinds.map(({ kind, type, tensors, bytes }) => [
    kind, type, String(tensors), formatSize(bytes), percent(bytes / file.fileBytes),
  ]), [2, 3, 4])}`;
}

function directText({ expertMatrices, directExpertMatrices, matrices }: ReturnType<typeof fileJson>): string {
  if (directExpertMatrices === expertMatrices) return 'every expert lies on whole 4 KiB blocks and is read straight into place';
  const ragged = matrices.find(({ direct }) => !direct)!;
  const why = ragged.expertBytes % BLOCK_BYTES !== 0
    ? `${ragged.expertBytes} bytes per expert in ${ragged.tensor} are no multiple of 4096` : `${ragged.tensor} begins at ${ragged.offset}`;
  return `${directExpertMatrices} of ${expertMatrices} expert matrices; the others are read through a bounce buffer (${why})`;
}
