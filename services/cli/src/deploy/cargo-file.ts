/** Files that are brought to devices: their SHA-256, as a whole and of a beginning, and a bundle in the form that a device can unpack. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip, constants } from 'node:zlib';
import * as zlib from 'node:zlib';
import { parsePublicKey, readBundleManifest, verifyBundle } from '@moefleet/runtime';
import { UsageFailure } from '../failure';
import type { Requirements } from './device-check';
import type { DeviceFacts } from './device-facts';
import { DeployError } from './deploy-error';

export interface CargoFile { path: string; bytes: number; sha256: string; }

export interface BundleCargo extends CargoFile {
  version: string;
  unpackedBytes: number;
  requires: Requirements;
}

export type PackFormat = 'zst' | 'gz' | 'tar';

const BUNDLE_NAME = /^moefleet-agent-(.+)-linux-(x64|arm64)\.tar\.zst$/;

/** Of the first `bytes` of the file; of all of it where unset. */
export async function fileSha256(path: string, bytes?: number): Promise<string> {
  const hash = createHash('sha256');
  if (bytes === 0) return hash.digest('hex');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20, ...(bytes === undefined ? {} : { end: bytes - 1 }) })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

export async function cargoFile(path: string): Promise<CargoFile> {
  return { path, bytes: statSync(path).size, sha256: await fileSha256(path) };
}

/** `place`: a bundle, or a folder of them, of which the latest counts. null where there is none for `arch`. */
export function findBundle(place: string, arch: 'x64' | 'arm64'): { path: string; version: string } | null {
  if (!existsSync(place)) return null;
  const files = statSync(place).isDirectory() ? readdirSync(place).map((name) => join(place, name)) : [place];
  const fitting = files.map((path) => ({ path, match: BUNDLE_NAME.exec(basename(path)) })).filter(({ match }) => match?.[2] === arch)
    .map(({ path, match }) => ({ path, version: match![1]!, madeMs: statSync(path).mtimeMs })).sort((a, b) => b.madeMs - a.madeMs);
  return fitting[0] ?? null;
}

/** `publicKey`: text of the key that must have signed it; null: it may be unsigned. Throws DeployError. */
export async function bundleCargo(path: string, publicKey: string | null): Promise<BundleCargo> {
  try {
    if (publicKey !== null) await verifyBundle(path, readFileSync(`${path}.minisig`, 'utf8'), parsePublicKey(publicKey));
    const { version, requires, files } = await readBundleManifest(path);
    return { ...await cargoFile(path), version, requires, unpackedBytes: Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0) };
  } catch (cause) {
    throw new DeployError(`the bundle ${path}: ${(cause as Error).message}`, 'make it anew: npm run bundle   (with --key FILE where it is to be signed)', { cause });
  }
}

export function checkBundlePlace(place: string): void {
  if (existsSync(place) && !statSync(place).isDirectory() && !BUNDLE_NAME.test(basename(place))) {
    throw new UsageFailure(`--bundle: "${place}" is not called moefleet-agent-VERSION-linux-ARCH.tar.zst; make bundles with: npm run bundle`);
  }
}

/** What takes the fewest bytes of what the device has a tool for. */
export function formatFor(tools: DeviceFacts['tools']): PackFormat {
  return tools.zstd ? 'zst' : tools.gzip ? 'gz' : 'tar';
}

/** The bundle as `format`, made once and kept in the cache folder. */
export async function bundleAs(bundle: BundleCargo, format: PackFormat, cacheFolder = join(homedir(), '.cache', 'moefleet', 'bundles')): Promise<string> {
  if (format === 'zst') return bundle.path;
  const target = join(cacheFolder, `${bundle.sha256}.tar${format === 'gz' ? '.gz' : ''}`);
  if (existsSync(target)) return target;
  mkdirSync(cacheFolder, { recursive: true });
  const part = `${target}.${process.pid}`;
  try {
    const packed = createReadStream(bundle.path);
    // Node.js knows zstd from 22.15 on.
    const { createZstdDecompress } = zlib as { createZstdDecompress?: () => NodeJS.ReadWriteStream };
    const gzip = format === 'gz' ? [createGzip({ level: constants.Z_BEST_SPEED })] : [];
    if (createZstdDecompress) {
      await pipeline([packed, createZstdDecompress(), ...gzip, createWriteStream(part)] as never);
    } else {
      const child = spawn('zstd', ['-dcq'], { stdio: ['pipe', 'pipe', 'inherit'] });
      const ended = new Promise<void>((resolve, reject) => {
        child.once('error', (cause) => reject(new DeployError('the device has no zstd, and neither has this machine', 'install it on either: apt-get install zstd', { cause })));
        child.once('close', (code) => (code === 0 ? resolve() : reject(new DeployError(`zstd ended with code ${code} on ${bundle.path}`, 'make the bundle anew: npm run bundle'))));
      });
      await Promise.all([ended, pipeline(packed, child.stdin).catch(() => {}), pipeline([child.stdout, ...gzip, createWriteStream(part)] as never)]);
    }
    renameSync(part, target);
  } finally {
    rmSync(part, { force: true });
  }
  return target;
}
