/**
 * A model as chunks: read from bytes that came over the network, so nothing in it is believed before it has been checked. Chunks
 * with the same content are one chunk with several places, which is fetched once.
 */
import { createHash } from 'node:crypto';
import { ModelManifest } from '@moefleet/proto';

export const MAX_CHUNK_BYTES = 8 * 1024 ** 2;
/** What a manifest of a million chunks takes. */
export const MAX_MANIFEST_BYTES = 64 * 1024 ** 2;
const MAX_CHUNKS = 1_000_000;

export interface Chunk {
  /** hex */
  readonly sha256: string;
  readonly bytes: number;
  /** where it lies in the file, ascending; at least one */
  readonly offsets: readonly number[];
}

export interface Manifest {
  /** hex SHA-256 of its serialised form: names the model */
  readonly id: string;
  readonly bytes: number;
  /** of the whole file, hex */
  readonly sha256: string;
  readonly modelHash: string;
  /** each content once, by its first place */
  readonly chunks: readonly Chunk[];
  readonly largestChunkBytes: number;
}

/** The bytes are not the manifest that was asked for, or it makes no sense. */
export class ManifestError extends Error {
  override readonly name = 'ManifestError';
}

/** `id`: hex SHA-256 that the bytes must have; `bytes`: of the model, where that is known from elsewhere. Throws ManifestError. */
export function readManifest(serialised: Uint8Array, id: string, bytes?: number): Manifest {
  const found = createHash('sha256').update(serialised).digest('hex');
  if (found !== id) throw new ManifestError(`manifest ${short(id)}: SHA-256 ${short(found)} arrived`);
  const told = decode(serialised, id);
  if (told.chunks.length === 0 || told.chunks.length > MAX_CHUNKS) throw new ManifestError(`manifest ${short(id)}: ${told.chunks.length} chunks are not from 1 to ${MAX_CHUNKS}`);
  if (told.sha256.length !== 32) throw new ManifestError(`manifest ${short(id)}: the file's SHA-256 has ${told.sha256.length} bytes, 32 were expected`);
  const places = new Map<string, { sha256: string; bytes: number; offsets: number[] }>();
  let offset = 0;
  for (const [index, { bytes: size, sha256 }] of told.chunks.entries()) {
    if (sha256.length !== 32) throw new ManifestError(`manifest ${short(id)}: the SHA-256 of chunk ${index} has ${sha256.length} bytes, 32 were expected`);
    if (size < 1 || size > MAX_CHUNK_BYTES) throw new ManifestError(`manifest ${short(id)}: chunk ${index} has ${size} bytes, which is not from 1 to ${MAX_CHUNK_BYTES}`);
    const hex = Buffer.from(sha256).toString('hex');
    const known = places.get(hex);
    if (known && known.bytes !== size) throw new ManifestError(`manifest ${short(id)}: chunk ${index} has the SHA-256 of another with ${known.bytes} bytes, and ${size}`);
    if (known) known.offsets.push(offset);
    else places.set(hex, { sha256: hex, bytes: size, offsets: [offset] });
    offset += size;
  }
  if (told.bytes !== BigInt(offset)) throw new ManifestError(`manifest ${short(id)}: its chunks have ${offset} bytes, it says ${told.bytes}`);
  if (bytes !== undefined && offset !== bytes) throw new ManifestError(`manifest ${short(id)}: is of ${offset} bytes, ${bytes} were announced`);
  const chunks = [...places.values()];
  return {
    id, bytes: offset, chunks, modelHash: told.modelHash, sha256: Buffer.from(told.sha256).toString('hex'),
    largestChunkBytes: chunks.reduce((most, chunk) => Math.max(most, chunk.bytes), 0),
  };
}

function decode(serialised: Uint8Array, id: string): ModelManifest {
  try {
    return ModelManifest.decode(serialised);
  } catch (cause) {
    throw new ManifestError(`manifest ${short(id)} cannot be decoded: ${(cause as Error).message}`, { cause });
  }
}

/** As people are shown a hash. */
export function short(sha256: string): string {
  return sha256.slice(0, 12);
}
