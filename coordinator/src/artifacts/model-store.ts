/**
 * Models that devices fetch: each a list of chunks (ModelManifest), which is itself a blob and names the model by its hash,
 * and a record by the name that operators give it. A name stands for one model until it is removed. Chunks that models
 * share are kept once, and go with the last of them; since that takes looking at all of them, models are entered and
 * removed one at a time, whichever coordinator does it.
 */
import { ModelManifest, type StoredModel } from '@moefleet/proto';
import { InvalidRequestError, NameTakenError, NotAllowedNowError, NotFoundError } from '../errors';
import { checkDigest, checkSha256, isSha256 } from '../names';
import { BLOBS, type BlobStore } from './blob-store';
import { readWhole } from './object-store';

export interface ModelRecord {
  readonly name: string;
  /** hex */
  readonly manifestSha256: string;
  readonly bytes: number;
  readonly modelHash: string;
  readonly chunks: number;
  /** of chunks that no model before it had */
  readonly ownBytes: number;
  readonly addedMs: number;
}

/** One holder at a time, over all coordinators. */
export type InTurn = <T>(work: () => Promise<T>) => Promise<T>;

const NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$/;
const RECORDS = 'models';
const MOST_RECORD_BYTES = 4096;
const MOST_CHUNK_BYTES = 2 * 1024 * 1024;
const MOST_ASKED = 10_000;
/** A chunk that no model has is of a push that broke off, which may still go on within this. */
const ORPHAN_MS = 7 * 24 * 3_600_000;
const NAMED = 3;

export class ModelStore {
  constructor(private readonly blobs: BlobStore, private readonly inTurn: InTurn, private readonly now: () => number) {}

  /** Of these, those that are not kept. */
  async missing(hashes: readonly Buffer[]): Promise<Buffer[]> {
    if (hashes.length > MOST_ASKED) throw new InvalidRequestError('sha256', `${hashes.length} hashes`, `at most ${MOST_ASKED}`);
    const sizes = await this.blobs.sizes(hashes.map((hash) => hash.toString('hex')));
    return hashes.filter((_, at) => sizes[at] === null);
  }

  /** Throws NameTakenError, NotAllowedNowError where a chunk is missing, InvalidRequestError for a manifest that is none. */
  put(name: string, manifestSha256: string): Promise<ModelRecord> {
    checkName(name);
    checkSha256('manifest_sha256', manifestSha256);
    return this.inTurn(async () => {
      const known = await this.lookUp(name);
      if (known && known.manifestSha256 !== manifestSha256) {
        throw new NameTakenError(`${name} stands for another model (${known.manifestSha256.slice(0, 12)}); give this one another name, or first: moefleet model remove ${name}`);
      }
      const manifest = await this.manifest(manifestSha256);
      await this.checkKept(name, manifest);
      const others = await this.chunksOfOthers(name);
      const own = distinct(manifest).filter(({ sha256 }) => !others.has(sha256)).reduce((sum, { bytes }) => sum + bytes, 0);
      const record: ModelRecord = {
        name, manifestSha256, bytes: Number(manifest.bytes), modelHash: manifest.modelHash, chunks: manifest.chunks.length,
        ownBytes: known?.ownBytes ?? own, addedMs: known?.addedMs ?? this.now(),
      };
      await this.blobs.store.put(recordKey(name), Buffer.from(JSON.stringify(record)));
      return record;
    });
  }

  /** Throws NotFoundError. */
  async find(name: string): Promise<ModelRecord> {
    const { place } = this.blobs.store;
    const record = NAME.test(name) ? await this.lookUp(name) : null;
    if (!record) throw new NotFoundError(`there is no model ${name.slice(0, 100)} in ${place}; see moefleet model list, or bring it there with: moefleet model push`);
    return record;
  }

  async list(): Promise<ModelRecord[]> {
    if (!this.blobs.kept) return [];
    const names: string[] = [];
    for await (const { key } of this.blobs.store.list(RECORDS)) names.push(key.slice(RECORDS.length + 1).replace(/\.json$/, ''));
    const records = await Promise.all(names.filter((name) => NAME.test(name)).map((name) => this.lookUp(name)));
    return records.filter((record) => record !== null).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** `inUse` says who needs the model, or null. Bytes that are free now, those of pushes that were given up among them. */
  remove(name: string, inUse: (record: ModelRecord) => Promise<string | null>): Promise<number> {
    return this.inTurn(async () => {
      const record = await this.find(name);
      const user = await inUse(record);
      if (user !== null) throw new NotAllowedNowError(`model ${name} is in use: ${user}; first: moefleet model auto, or moefleet model set with another`);
      const { store } = this.blobs;
      // Before its chunks: what is half removed is no model.
      await store.remove(recordKey(name));
      const others = await this.chunksOfOthers(name);
      const own = await this.manifest(record.manifestSha256).then((manifest) => new Set(distinct(manifest).map(({ sha256 }) => sha256)), () => new Set<string>());
      own.add(record.manifestSha256);
      let freed = 0;
      for await (const { key, bytes, modifiedMs } of store.list(BLOBS)) {
        const sha256 = key.slice(key.lastIndexOf('/') + 1);
        if (others.has(sha256) || !(own.has(sha256) || modifiedMs < this.now() - ORPHAN_MS)) continue;
        await store.remove(key);
        freed += bytes;
      }
      return freed;
    });
  }

  private async lookUp(name: string): Promise<ModelRecord | null> {
    const json = await readWhole(this.blobs.store, recordKey(name), MOST_RECORD_BYTES);
    return json && decodeRecord(name, json);
  }

  private async manifest(sha256: string): Promise<ModelManifest> {
    const data = await this.blobs.readWhole(sha256);
    if (!data) throw new NotAllowedNowError(`the list of chunks ${sha256.slice(0, 12)} is not here; push the model again: moefleet model push`);
    return checkManifest(data);
  }

  private async checkKept(name: string, manifest: ModelManifest): Promise<void> {
    const chunks = distinct(manifest);
    const sizes = await this.blobs.sizes(chunks.map(({ sha256 }) => sha256));
    const wrong = chunks.filter(({ bytes }, at) => sizes[at] !== bytes).map(({ sha256 }) => sha256.slice(0, 12));
    if (wrong.length > 0) throw new NotAllowedNowError(`${wrong.length} of ${chunks.length} chunks of ${name} are not here (${wrong.slice(0, NAMED).join(', ')}${wrong.length > NAMED ? ', …' : ''}); push it again: moefleet model push`);
  }

  /** Hashes of all blobs that models but this one need, their lists included. */
  private async chunksOfOthers(name: string): Promise<Set<string>> {
    const needed = new Set<string>();
    for (const other of await this.list()) {
      if (other.name === name) continue;
      needed.add(other.manifestSha256);
      // A list that is lost or damaged says nothing: its chunks are of no use without it.
      const manifest = await this.manifest(other.manifestSha256).catch((error: unknown) => {
        if (error instanceof NotAllowedNowError || error instanceof InvalidRequestError) return null;
        throw error;
      });
      for (const { sha256 } of manifest?.chunks ?? []) needed.add(sha256.toString('hex'));
    }
    return needed;
  }
}

export function modelMessage({ name, manifestSha256, bytes, modelHash, chunks, ownBytes, addedMs }: ModelRecord): StoredModel {
  return { name, manifestSha256, bytes: BigInt(bytes), modelHash, chunks, ownBytes: BigInt(ownBytes), addedMs: BigInt(addedMs) };
}

function recordKey(name: string): string {
  return `${RECORDS}/${name}.json`;
}

function checkName(name: string): void {
  if (!NAME.test(name)) throw new InvalidRequestError('name', name, 'a name of letters, digits, ".", "_", "+" and "-", at most 100');
}

/** Throws InvalidRequestError for what is no whole list of chunks. */
function checkManifest(data: Buffer): ModelManifest {
  const refuse = (field: string, value: unknown, expected: string) => new InvalidRequestError(`manifest.${field}`, value, expected);
  let manifest: ModelManifest;
  try {
    manifest = ModelManifest.decode(data);
  } catch {
    throw refuse('bytes', `${data.length} bytes`, 'a list of chunks');
  }
  if (manifest.sha256.length !== 32) throw refuse('sha256', `${manifest.sha256.length} bytes`, 'a SHA-256 of 32 bytes');
  checkDigest('manifest.model_hash', manifest.modelHash);
  if (manifest.chunks.length === 0) throw refuse('chunks', 'none', 'one or more');
  for (const [at, { bytes, sha256 }] of manifest.chunks.entries()) {
    if (sha256.length !== 32) throw refuse(`chunks[${at}].sha256`, `${sha256.length} bytes`, 'a SHA-256 of 32 bytes');
    if (bytes < 1 || bytes > MOST_CHUNK_BYTES) throw refuse(`chunks[${at}].bytes`, bytes, `from 1 to ${MOST_CHUNK_BYTES}`);
  }
  const sum = manifest.chunks.reduce((total, { bytes }) => total + bytes, 0);
  if (BigInt(sum) !== manifest.bytes) throw refuse('bytes', manifest.bytes, `the sum of its chunks, ${sum}`);
  return manifest;
}

/** Chunks with hex hashes, each once. */
function distinct(manifest: ModelManifest): { sha256: string; bytes: number }[] {
  return [...new Map(manifest.chunks.map(({ sha256, bytes }) => [sha256.toString('hex'), bytes]))].map(([sha256, bytes]) => ({ sha256, bytes }));
}

/** null for what is no record of this name. */
function decodeRecord(name: string, json: Buffer): ModelRecord | null {
  try {
    const { name: own, manifestSha256, bytes, modelHash, chunks, ownBytes, addedMs } = JSON.parse(json.toString('utf8')) as Partial<ModelRecord>;
    const counts = [bytes, chunks, ownBytes, addedMs];
    if (own !== name || !isSha256(manifestSha256) || typeof modelHash !== 'string' || !counts.every((count) => Number.isSafeInteger(count) && count! >= 0)) return null;
    return { name, manifestSha256, bytes: bytes!, modelHash, chunks: chunks!, ownBytes: ownBytes!, addedMs: addedMs! };
  } catch {
    return null;
  }
}
