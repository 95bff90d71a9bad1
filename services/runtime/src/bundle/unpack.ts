/**
 * From a bundle's file to a folder of its contents. Nothing of the file is read as an archive before its signature has
 * been verified; what the archive then holds is bounded by its manifest, entry by entry, and compared with it. The
 * folder is made new, and is gone again if anything was wrong.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream';
import * as zlib from 'node:zlib';
import { type BundleFile, BundleError, type BundleManifest, MANIFEST_BOUND, MANIFEST_NAME, parseManifest } from './manifest';
import { fileDigest, type PublicKey, verifyDigest } from './minisign';
import { readTar, type TarEntry, type TarSink } from './tar';

/** Throws SignatureError unless the file is signed by `key`. */
export async function verifyBundle(path: string, signatureText: string, key: PublicKey): Promise<void> {
  verifyDigest(await fileDigest(path), signatureText, key);
}

/** The manifest alone; reads no further than that. Throws BundleError. */
export async function readBundleManifest(path: string): Promise<BundleManifest> {
  const found = new FoundManifest();
  try {
    await readTar(decompressed(path), (entry) => manifestSink(entry, (manifest) => { throw found.take(manifest); }));
  } catch (error) {
    if (error === found && found.manifest) return found.manifest;
    throw error;
  }
  throw new BundleError(`${path} holds no ${MANIFEST_NAME}`);
}

/**
 * Unpacks a bundle whose signature has been verified into `folder`, which must not exist. Files are flushed to the disk.
 * Throws BundleError for a bundle that does not hold what its manifest says.
 */
export async function unpackBundle(path: string, folder: string): Promise<BundleManifest> {
  await mkdir(folder, { recursive: false });
  const unpacking = new Unpacking(folder);
  try {
    await readTar(decompressed(path), (entry) => unpacking.entry(entry));
    return unpacking.finish();
  } catch (error) {
    await unpacking.abandon();
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

class Unpacking {
  private manifest: BundleManifest | null = null;
  private readonly missing = new Set<string>();
  private writing: FileHandle | null = null;

  constructor(private readonly folder: string) {}

  async entry(entry: TarEntry): Promise<TarSink> {
    if (!this.manifest) {
      const sink = manifestSink(entry, (manifest) => {
        this.manifest = manifest;
        for (const path of Object.keys(manifest.files)) this.missing.add(path);
      });
      return both(await this.create(MANIFEST_NAME, false), sink);
    }
    const path = innerPath(entry.path);
    const expected = this.manifest.files[path];
    if (!expected) throw new BundleError(`${JSON.stringify(entry.path).slice(0, 120)} is not in ${MANIFEST_NAME}`);
    if (!this.missing.delete(path)) throw new BundleError(`${path} is there twice`);
    if (entry.bytes !== expected.bytes) throw new BundleError(`${path}: ${entry.bytes} bytes, ${MANIFEST_NAME} says ${expected.bytes}`);
    return both(await this.create(path, expected.executable), hashSink(path, expected));
  }

  finish(): BundleManifest {
    if (!this.manifest) throw new BundleError(`the bundle holds no ${MANIFEST_NAME}`);
    const [first] = this.missing;
    if (first !== undefined) throw new BundleError(`${first} is missing, and ${this.missing.size - 1} more that ${MANIFEST_NAME} names`);
    return this.manifest;
  }

  async abandon(): Promise<void> {
    await this.writing?.close();
  }

  private async create(path: string, executable: boolean): Promise<TarSink> {
    const target = join(this.folder, path);
    await mkdir(dirname(target), { recursive: true });
    const file = await open(target, 'wx', executable ? 0o755 : 0o644);
    this.writing = file;
    return {
      write: (part) => file.writeFile(part),
      end: async () => {
        await file.sync();
        this.writing = null;
        await file.close();
      },
    };
  }
}

class FoundManifest extends Error {
  manifest: BundleManifest | null = null;

  take(manifest: BundleManifest): this {
    this.manifest = manifest;
    return this;
  }
}

function manifestSink(entry: TarEntry, done: (manifest: BundleManifest) => void): TarSink {
  if (innerPath(entry.path) !== MANIFEST_NAME) throw new BundleError(`the bundle begins with ${JSON.stringify(entry.path).slice(0, 120)}; expected ${MANIFEST_NAME}`);
  if (entry.bytes > MANIFEST_BOUND) throw new BundleError(`${MANIFEST_NAME}: ${entry.bytes} bytes; at most ${MANIFEST_BOUND}`);
  const parts: Buffer[] = [];
  return {
    write: (part) => void parts.push(Buffer.from(part)),
    end: () => done(parseManifest(Buffer.concat(parts).toString('utf8'))),
  };
}

function hashSink(path: string, expected: BundleFile): TarSink {
  const hash = createHash('sha256');
  return {
    write: (part) => void hash.update(part),
    end: () => {
      const sha256 = hash.digest('hex');
      if (sha256 !== expected.sha256) throw new BundleError(`${path}: SHA-256 ${sha256}, ${MANIFEST_NAME} says ${expected.sha256}`);
    },
  };
}

/** `a` first, so that a file is closed before what it holds is judged. */
function both(a: TarSink, b: TarSink): TarSink {
  return {
    write: async (part) => {
      await a.write(part);
      await b.write(part);
    },
    end: async () => {
      await a.end();
      await b.end();
    },
  };
}

/** Without the archive's one top folder. */
function innerPath(path: string): string {
  return path.slice(path.indexOf('/') + 1);
}

/**
 * What a `.zst` file holds, as it is decompressed. Node knows zstd from 22.15 on, as a bundle's own does; elsewhere the
 * `zstd` program is asked. Throws BundleError.
 */
export async function* decompressed(path: string): AsyncGenerator<Buffer> {
  const { createZstdDecompress } = zlib as { createZstdDecompress?: () => NodeJS.ReadWriteStream };
  if (createZstdDecompress) {
    const file = createReadStream(path, { highWaterMark: 1 << 18 });
    // Whoever reads learns of an error of either stream from the second.
    const stream = pipeline(file, createZstdDecompress(), () => {});
    try {
      for await (const part of stream) yield part as Buffer;
    } catch (cause) {
      if (cause instanceof BundleError) throw cause;
      throw new BundleError(`${path} cannot be decompressed: ${(cause as Error).message}`, { cause });
    } finally {
      file.destroy();
    }
    return;
  }
  const child = spawn('zstd', ['-dcq', '--', path], { stdio: ['ignore', 'pipe', 'pipe'] });
  let complaint = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => { complaint = (complaint + text).slice(-500); });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', (cause) => reject(new BundleError(`this Node.js (${process.version}) cannot decompress zstd and there is no program zstd; install the package zstd`, { cause })));
    child.once('close', resolve);
  });
  ended.catch(() => {});
  try {
    for await (const part of child.stdout) yield part as Buffer;
    const code = await ended;
    if (code !== 0) throw new BundleError(`${path} cannot be decompressed: ${complaint.trim() || `zstd ended with ${code}`}`);
  } finally {
    child.kill();
  }
}
