/**
 * A GGUF that every check of ours passes and llama.cpp aborts on: two entries of its vocabulary are the same, so its
 * loader's assertion that tokens and their texts are one to one fails, and the process with it.
 */
import { readFileSync, writeFileSync } from 'node:fs';

/** Writes a copy of the GGUF `source` with one vocabulary entry repeated. */
export function writeAbortingModel(source: string, target: string): void {
  const file = readFileSync(source);
  const key = 'tokenizer.ggml.tokens';
  // After the key: type of the value (array), type of its elements (string), their count, then each length and text.
  let at = file.indexOf(key) + key.length + 4 + 4;
  const count = Number(file.readBigUInt64LE(at));
  at += 8;
  let earlier: Buffer | null = null;
  for (let token = 0; token < count; token += 1) {
    const length = Number(file.readBigUInt64LE(at));
    at += 8;
    const text = file.subarray(at, at + length);
    if (earlier && length === earlier.length && token > 300) {
      earlier.copy(file, at);
      writeFileSync(target, file);
      return;
    }
    if (token === 300) earlier = text;
    at += length;
  }
  throw new Error(`${source}: no two tokens of one length to make equal`);
}
