/**
 * The bytes of a router window: a row of scores for every token and MoE layer, token by token, compressed with zstd.
 *
 * A row is float32 minimum and step, little endian, then a byte for each expert; a score is minimum + step * byte. Bytes go
 * from 0 to 254, so the error of a score is at most half a step, 1/508 of the row's range, and the rounding of float32;
 * 255 is a masked expert, which can never be selected. Where that error is too much a row may be the float32 scores
 * themselves. Earlier agents sent bytes up to 255, masked experts at the lowest level, deflated.
 *
 * What is unpacked is untrusted: its size follows from the window's head and is bounded, and a frame that claims any
 * other is refused before it is decompressed.
 */
import { promisify } from 'node:util';
import { inflate } from 'node:zlib';
import { compress, decompress, init } from '@bokuweb/zstd-wasm';
import { Compression, RouterEncoding, type RouterWindow } from '@moefleet/proto';

const inflated = promisify(inflate);

const HEAD_BYTES = 8;
const LEVELS = 254;
const MASKED = 255;
/** Levels differ little from row to row: higher ones take longer and gain under 1%. */
const ZSTD_LEVEL = 3;
/** Of one window, unpacked: 512 tokens of a model with 48 layers of 1,024 experts. */
export const MOST_WINDOW_ROW_BYTES = 32 * 1024 * 1024;

/** The window cannot be read; the message says what is wrong with it. */
export class WindowFormatError extends Error {
  override readonly name = 'WindowFormatError';
}

/** As `RouteTrace` takes them; one of `rows` and `scores` is there. */
export interface WindowRows { rows: Uint8Array | null; rowsMask: boolean; scores: Float32Array | null; }

/** `scores`: rows x experts; not finite: masked. */
export function quantise(scores: Float32Array, experts: number): Buffer {
  const count = scores.length / experts;
  if (!Number.isInteger(count)) throw new RangeError(`${scores.length} scores are no whole number of rows of ${experts}`);
  const data = Buffer.allocUnsafe(count * (HEAD_BYTES + experts));
  for (let row = 0, at = 0; row < count; row += 1, at += HEAD_BYTES + experts) {
    const from = row * experts;
    let min = Infinity;
    let max = -Infinity;
    for (let i = from; i < from + experts; i += 1) {
      const score = scores[i]!;
      if (!Number.isFinite(score)) continue;
      if (score < min) min = score;
      if (score > max) max = score;
    }
    if (min > max) min = max = 0;
    const step = Math.fround((max - min) / LEVELS);
    data.writeFloatLE(min, at);
    data.writeFloatLE(step, at + 4);
    for (let i = 0; i < experts; i += 1) {
      const score = scores[from + i]!;
      const level = step > 0 ? Math.min(Math.round((score - min) / step), LEVELS) : 0;
      data[at + HEAD_BYTES + i] = Number.isFinite(score) ? level : MASKED;
    }
  }
  return data;
}

/** The inverse, up to rounding; rows x experts. */
export function dequantise(data: Uint8Array, experts: number): Float32Array {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const count = bytes.length / (HEAD_BYTES + experts);
  if (!Number.isInteger(count)) throw new RangeError(`${bytes.length} bytes are no whole number of rows of ${experts} experts`);
  const scores = new Float32Array(count * experts);
  for (let row = 0, at = 0; row < count; row += 1, at += HEAD_BYTES + experts) {
    const min = bytes.readFloatLE(at);
    const step = bytes.readFloatLE(at + 4);
    for (let i = 0; i < experts; i += 1) {
      const level = bytes[at + HEAD_BYTES + i]!;
      scores[row * experts + i] = level === MASKED ? -Infinity : min + step * level;
    }
  }
  return scores;
}

/** What a window's `data`, `compression` and `encoding` are for these scores (tokens x layers x experts). */
export async function packScores(scores: Float32Array, experts: number, exact = false): Promise<Pick<RouterWindow, 'data' | 'compression' | 'encoding'>> {
  await ready();
  const raw = exact ? Buffer.from(scores.buffer, scores.byteOffset, scores.byteLength) : quantise(scores, experts);
  return {
    data: Buffer.from(compress(raw, ZSTD_LEVEL)), compression: Compression.COMPRESSION_ZSTD,
    encoding: exact ? RouterEncoding.ROUTER_ENCODING_FLOAT32 : RouterEncoding.ROUTER_ENCODING_MASKED_BYTES,
  };
}

/** Throws WindowFormatError. */
export async function unpackWindow(window: RouterWindow): Promise<WindowRows> {
  const raw = await rawRows(window, rowBytes(window) * window.tokens * window.layers);
  if (window.encoding !== RouterEncoding.ROUTER_ENCODING_FLOAT32) {
    return { rows: raw, rowsMask: window.encoding === RouterEncoding.ROUTER_ENCODING_MASKED_BYTES, scores: null };
  }
  // A view needs its start on a whole number of floats.
  const aligned = raw.byteOffset % 4 === 0 ? raw : Uint8Array.from(raw);
  return { rows: null, rowsMask: false, scores: new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4) };
}

/** Bytes of one row, after a look at the window's head. Throws WindowFormatError. */
function rowBytes({ windowId, tokens, layers, experts, encoding }: RouterWindow): number {
  const exact = encoding === RouterEncoding.ROUTER_ENCODING_FLOAT32;
  if (!exact && encoding !== RouterEncoding.ROUTER_ENCODING_UNSPECIFIED && encoding !== RouterEncoding.ROUTER_ENCODING_MASKED_BYTES) {
    throw new WindowFormatError(`window ${windowId}: encoding ${encoding} is of a later release; update moefleet`);
  }
  const bytes = exact ? 4 * experts : HEAD_BYTES + experts;
  const total = bytes * tokens * layers;
  if (tokens < 1 || layers < 1 || experts < 1 || total > MOST_WINDOW_ROW_BYTES) {
    throw new WindowFormatError(`window ${windowId}: ${tokens} tokens of ${layers} layers of ${experts} experts, where at least one of each and at most ${MOST_WINDOW_ROW_BYTES} bytes are allowed`);
  }
  return bytes;
}

async function rawRows({ windowId, compression, data }: RouterWindow, expected: number): Promise<Uint8Array> {
  const damaged = (what: string) => new WindowFormatError(`window ${windowId}: ${what}; the window is damaged`);
  let raw: Uint8Array;
  try {
    switch (compression) {
      case Compression.COMPRESSION_NONE: raw = data; break;
      case Compression.COMPRESSION_DEFLATE: raw = await inflated(data, { maxOutputLength: expected }); break;
      case Compression.COMPRESSION_ZSTD: {
        const claimed = zstdContentSize(data);
        if (claimed !== expected) throw damaged(`its frame says ${claimed ?? 'nothing'} where ${expected} bytes are due`);
        await ready();
        raw = decompress(data);
        break;
      }
      default: throw new WindowFormatError(`window ${windowId}: compression ${compression} is of a later release; update moefleet`);
    }
  } catch (error) {
    throw error instanceof WindowFormatError ? error : damaged((error as Error).message);
  }
  if (raw.length !== expected) throw damaged(`${raw.length} bytes where ${expected} are due`);
  return raw;
}

/** The size that a zstd frame's header states (RFC 8878, 3.1.1.1); null where it states none or is no header. */
export function zstdContentSize(frame: Uint8Array): number | null {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  if (bytes.length < 6 || bytes.readUInt32LE(0) !== 0xfd2fb528) return null;
  const descriptor = bytes[4]!;
  const single = (descriptor >> 5) & 1;
  const sizeBytes = [single, 2, 4, 8][descriptor >> 6]!;
  const at = 5 + (1 - single) + [0, 1, 2, 4][descriptor & 3]!;
  if (sizeBytes === 0 || bytes.length < at + sizeBytes) return null;
  if (sizeBytes === 8) return Number(bytes.readBigUInt64LE(at));
  return bytes.readUIntLE(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0);
}

let loading: Promise<void> | null = null;

/** The compressor is a WebAssembly module, loaded when first needed. */
function ready(): Promise<void> {
  loading ??= init();
  return loading;
}
