/** A GGUF that every check passes and that computes no numbers: the scales before its output are NaN. */
import { readFileSync, writeFileSync } from 'node:fs';
import { inspectModel } from '../../engine';

/** Writes such a copy of the GGUF `source`. */
export async function writeNanModel(source: string, target: string): Promise<void> {
  const file = readFileSync(source);
  const norm = (await inspectModel(source)).tensors.find(({ name }) => name === 'output_norm.weight');
  if (norm?.type !== 'f32') throw new Error(`${source}: output_norm.weight is not there as f32`);
  for (let at = 0; at < norm.bytes; at += 4) file.writeFloatLE(NaN, norm.offset + at);
  writeFileSync(target, file);
}
