/**
 * Whether an engine can be started within the memory there is, asked before each step that takes some: before its process, before
 * the model, and before the cache. What an agent may use is the machine's, or what its control group allows; who takes more is killed.
 */
import { formatSize } from '@moefleet/runtime';
import type { EngineMemory, ModelInfo } from '../native';
import { FIRST_ANSWERS_BYTES } from './memory-pressure';
import type { MemoryReading } from './process-memory';

/** An engine host that has opened nothing, and its file when it opens a model: 19 MiB of Node without a shared page. */
const HOST_BYTES = 24 * 2 ** 20;
/** Beside dense weights and cache: context, vocabulary, buffers. With so much to spare nothing needs to be counted. */
const PLENTY_BYTES = 2 ** 30;
/** Of what is left for cache and prompts, what prompts get. */
const PROMPT_SHARE = 0.25;

/** There is not enough memory to start; there may be later. */
export class ShortMemoryError extends Error {
  override readonly name = 'ShortMemoryError';
}

type Shape = Pick<ModelInfo, 'path' | 'denseBytes' | 'expertBytes' | 'topK' | 'tokenCycleBytes'>;

/** Throws ShortMemoryError. */
export function checkHostFits(reading: MemoryReading): void {
  if (reading.availableBytes >= HOST_BYTES) return;
  throw shortBy(HOST_BYTES, reading, 'the engine host, before it has opened a model');
}

/** About what prompts may take beside the cache; null: as much as they like. Throws ShortMemoryError. */
export function promptBudget(reading: MemoryReading, { path, denseBytes, expertBytes, topK, tokenCycleBytes }: Shape, wantedBytes: number, lowBytes: number): number | null {
  const { availableBytes } = reading;
  if (availableBytes >= PLENTY_BYTES + denseBytes + wantedBytes + lowBytes) return null;
  const least = 2 * topK * Math.max(...expertBytes);
  const needs = denseBytes + tokenCycleBytes + least / 2 + FIRST_ANSWERS_BYTES;
  if (availableBytes < needs) throw shortBy(needs, reading, `${path}: its dense weights, the experts of one token and its first answers`);
  return Math.max(least, Math.floor((availableBytes - needs - lowBytes) * PROMPT_SHARE));
}

/** What an open engine may still take to read a prompt. */
export function promptBytesOf({ prefillBytes, untouchedBytes }: EngineMemory): number {
  return prefillBytes + untouchedBytes;
}

/** With the model open and its cache empty. Throws ShortMemoryError. */
export function checkCacheFits(reading: MemoryReading, { path, tokenCycleBytes }: Shape, memory: EngineMemory): void {
  const needs = tokenCycleBytes + promptBytesOf(memory) + FIRST_ANSWERS_BYTES;
  if (reading.availableBytes < needs) throw shortBy(needs, reading, `${path}: the experts of one token, a prompt and its first answers`);
}

function shortBy(needs: number, { availableBytes, totalBytes }: MemoryReading, what: string): ShortMemoryError {
  return new ShortMemoryError(
    `too little memory for ${what}: ${formatSize(needs)} are needed, ${formatSize(availableBytes)} are left of the ${formatSize(totalBytes)} that the agent may use; ` +
    `allow it ${formatSize(totalBytes + needs - availableBytes)} or more (its control group's or container's limit), end what runs beside it, or take a smaller model or --context`,
  );
}
