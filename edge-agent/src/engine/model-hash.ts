/**
 * Which model a file is: SHA-256 over everything before the tensor data (all metadata, tensor names, shapes and
 * places), the size, and the first 4,096 bytes of every tensor; of a model in several files, of each file in turn. Identity, not integrity: it tells models and
 * quantisations apart without reading gigabytes, and does not notice a byte flipped deep inside a tensor.
 */
import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { readExactly, ShortFileError } from '@moefleet/runtime';
import type { ModelInfo, TensorPlace } from '../native';
import { ModelFormatError } from './engine-error';
import { inspectModel } from './model-files';

const TENSOR_HEAD_BYTES = 4096;
const CHUNK_BYTES = 1 << 20;

/** Hex digest. Takes a path, or what `inspectModel` gave for one. */
export async function modelHash(model: string | ModelInfo): Promise<string> {
  const info = typeof model === 'string' ? await inspectModel(model) : model;
  const hash = createHash('sha256');
  for (const [index, path] of info.files.entries()) {
    const file = await open(path, 'r');
    try {
      await addFile(hash, file, path, info.tensors.filter((tensor) => tensor.file === index));
    } finally {
      await file.close();
    }
  }
  return hash.digest('hex');
}

async function addFile(hash: Hash, file: FileHandle, path: string, tensors: readonly TensorPlace[]): Promise<void> {
  const { size } = await file.stat();
  const dataStart = tensors.reduce((first, tensor) => Math.min(first, tensor.offset), size);
  await addRange(hash, file, path, 0, dataStart);
  hash.update(`\0${size}\0`);
  for (const tensor of tensors) {
    await addRange(hash, file, path, tensor.offset, Math.min(tensor.bytes, TENSOR_HEAD_BYTES));
  }
}

async function addRange(hash: Hash, file: FileHandle, path: string, offset: number, bytes: number): Promise<void> {
  for (let done = 0; done < bytes; done += CHUNK_BYTES) {
    hash.update(await readExactly(file, offset + done, Math.min(CHUNK_BYTES, bytes - done)).catch((error: unknown) => {
      throw error instanceof ShortFileError ? new ModelFormatError(`${path}: ended at byte ${error.endByte} while it was hashed`) : error;
    }));
  }
}
