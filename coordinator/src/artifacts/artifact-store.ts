/**
 * Files that devices fetch, in a folder: bundles of the agent today. Each is kept by its SHA-256 (`blobs/<hex>`) beside a
 * record by its name (`names/<name>.json`); a name, once given, stays with its content, so that whoever has seen a name has
 * seen what it stands for. Coordinators that share a fleet share the folder.
 */
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Artifact } from '@moefleet/proto';
import { InvalidRequestError, NameTakenError, NotAllowedNowError, NotFoundError, StoreFailedError } from '../errors';
import { checkSha256, isSha256 } from '../names';

export interface ArtifactRecord {
  readonly name: string;
  readonly bytes: number;
  /** hex */
  readonly sha256: string;
  /** a signature file's content, empty for none; whoever fetches it verifies it */
  readonly signature: string;
  readonly addedMs: number;
}

export type NewArtifact = Pick<ArtifactRecord, 'name' | 'bytes' | 'sha256' | 'signature'>;

const NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$/;
const MOST_BYTES = 2 ** 36;
const MOST_SIGNATURE = 4096;
const PART_BYTES = 256 * 1024;

export class ArtifactStore {
  /** `folder` null: this coordinator keeps none. */
  constructor(private readonly folder: string | null, private readonly now: () => number) {}

  /** Takes a file in; what does not arrive whole leaves nothing. Throws NameTakenError where the name stands for something else, StoreFailedError. */
  async put(artifact: NewArtifact, parts: AsyncIterable<Buffer>): Promise<ArtifactRecord> {
    const folder = this.kept();
    checkNew(artifact);
    const known = await this.lookUp(artifact.name);
    if (known && known.sha256 !== artifact.sha256) {
      throw new NameTakenError(`${artifact.name} is there already with other content (SHA-256 ${known.sha256.slice(0, 12)}); build it under another version`);
    }
    await Promise.all(['blobs', 'names', 'incoming'].map((inner) => mkdir(join(folder, inner), { recursive: true }))).catch((error: unknown) => {
      throw new StoreFailedError(folder, error);
    });
    const part = join(folder, 'incoming', randomUUID());
    try {
      await receive(part, artifact, parts);
      await rename(part, join(folder, 'blobs', artifact.sha256));
    } finally {
      await rm(part, { force: true });
    }
    const { name, bytes, sha256, signature } = artifact;
    const record: ArtifactRecord = { name, bytes, sha256, signature, addedMs: this.now() };
    const target = join(folder, 'names', `${name}.json`);
    const temporary = join(folder, 'incoming', `${randomUUID()}.json`);
    await writeFile(temporary, JSON.stringify(record), { flush: true } as object);
    await rename(temporary, target);
    return record;
  }

  /** Throws NotFoundError. */
  async find(name: string): Promise<ArtifactRecord> {
    const folder = this.kept();
    const record = NAME.test(name) ? await this.lookUp(name) : null;
    if (!record) throw new NotFoundError(`there is no artifact ${name.slice(0, 200)} in ${folder}; bring it there with: moefleet agent push`);
    return record;
  }

  async list(): Promise<ArtifactRecord[]> {
    if (this.folder === null) return [];
    const files = await readdir(join(this.folder, 'names')).catch(() => []);
    const records = await Promise.all(files.filter((file) => file.endsWith('.json')).map((file) => this.lookUp(file.slice(0, -'.json'.length))));
    return records.filter((record) => record !== null).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The content from `offset` on, in parts that fit a message. Throws NotFoundError, InvalidRequestError. */
  async read(sha256: string, offset: number): Promise<AsyncIterable<Buffer>> {
    const folder = this.kept();
    checkSha256('sha256', sha256);
    const path = join(folder, 'blobs', sha256);
    const size = await stat(path).then((found) => found.size, () => null);
    if (size === null) throw new NotFoundError(`there is no artifact with SHA-256 ${sha256}`);
    if (!Number.isSafeInteger(offset) || offset < 0 || offset > size) throw new InvalidRequestError('offset', offset, `within the ${size} bytes of the artifact`);
    return createReadStream(path, { start: offset, highWaterMark: PART_BYTES }) as AsyncIterable<Buffer>;
  }

  /** null for a name that is not known, or a record that is damaged or without its content. */
  private async lookUp(name: string): Promise<ArtifactRecord | null> {
    try {
      const folder = this.kept();
      const record = JSON.parse(await readFile(join(folder, 'names', `${name}.json`), 'utf8')) as Partial<ArtifactRecord>;
      if (record.name !== name || !isSha256(record.sha256) || !Number.isSafeInteger(record.bytes) || typeof record.signature !== 'string') return null;
      await access(join(folder, 'blobs', record.sha256));
      return { name, bytes: record.bytes!, sha256: record.sha256, signature: record.signature, addedMs: Number(record.addedMs) || 0 };
    } catch {
      return null;
    }
  }

  private kept(): string {
    if (this.folder === null) throw new NotAllowedNowError('this coordinator keeps no artifacts; start it with --artifact-dir FOLDER');
    return this.folder;
  }
}

export function artifactMessage({ name, bytes, sha256, signature, addedMs }: ArtifactRecord): Artifact {
  return { name, bytes: BigInt(bytes), sha256, signature, addedMs: BigInt(addedMs) };
}

function checkNew({ name, bytes, sha256, signature }: NewArtifact): void {
  if (!NAME.test(name)) throw new InvalidRequestError('name', name, 'a file name of letters, digits, ".", "_", "+" and "-"');
  checkSha256('sha256', sha256);
  if (!(bytes > 0 && bytes <= MOST_BYTES)) throw new InvalidRequestError('bytes', bytes, `from 1 to ${MOST_BYTES}`);
  if (signature.length > MOST_SIGNATURE) throw new InvalidRequestError('signature', `${signature.length} characters`, `at most ${MOST_SIGNATURE}`);
}

/** On the disk when it resolves. */
async function receive(path: string, { bytes, sha256 }: NewArtifact, parts: AsyncIterable<Buffer>): Promise<void> {
  const file: FileHandle = await open(path, 'wx', 0o644);
  const hash = createHash('sha256');
  let received = 0;
  try {
    for await (const part of parts) {
      received += part.length;
      if (received > bytes) throw new InvalidRequestError('data', `more than ${bytes} bytes`, 'what was announced');
      hash.update(part);
      await file.writeFile(part);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  const found = hash.digest('hex');
  if (received !== bytes || found !== sha256) throw new InvalidRequestError('data', `${received} bytes with SHA-256 ${found.slice(0, 12)}`, `the ${bytes} bytes with SHA-256 ${sha256.slice(0, 12)} that were announced; send it again`);
}
