/** Files that are brought to devices, by their SHA-256, and a bundle in the form that a device can unpack. */
import { createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip, constants } from 'node:zlib';
import { BundleError, decompressed, fileSha256, parsePublicKey, readBundleManifest, verifyBundle } from '@moefleet/runtime';
import { UsageFailure } from '../failure';
import type { Requirements } from './device-check';
import type { DeviceFacts } from './device-facts';
import { DeployError } from './deploy-error';

export interface CargoFile { path: string; bytes: number; sha256: string; }

export interface BundleCargo extends CargoFile {
  version: string;
  unpackedBytes: number;
  requires: Requirements;
  /** The bundle as a device can unpack it. Throws DeployError. */
  as(format: PackFormat): Promise<CargoFile>;
}

export type PackFormat = 'zst' | 'gz' | 'tar';

const BUNDLE_NAME = /^moefleet-agent-(.+)-linux-(x64|arm64)\.tar\.zst$/;

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
export async function bundleCargo(path: string, publicKey: string | null, cacheFolder = join(homedir(), '.cache', 'moefleet', 'bundles')): Promise<BundleCargo> {
  try {
    if (publicKey !== null) await verifyBundle(path, readFileSync(`${path}.minisig`, 'utf8'), parsePublicKey(publicKey));
    const { version, requires, files } = await readBundleManifest(path);
    const file = await cargoFile(path);
    return { ...file, version, requires, unpackedBytes: Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0), as: repacking(file, cacheFolder) };
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

/** Made once, however many hosts ask for it at a time, and kept in the cache folder. */
function repacking(bundle: CargoFile, cacheFolder: string): BundleCargo['as'] {
  const made = new Map<PackFormat, Promise<CargoFile>>([['zst', Promise.resolve(bundle)]]);
  return (format) => {
    if (!made.has(format)) made.set(format, repacked(bundle, format, cacheFolder).then(cargoFile));
    return made.get(format)!;
  };
}

async function repacked(bundle: CargoFile, format: PackFormat, cacheFolder: string): Promise<string> {
  const target = join(cacheFolder, `${bundle.sha256}.tar${format === 'gz' ? '.gz' : ''}`);
  if (existsSync(target)) return target;
  mkdirSync(cacheFolder, { recursive: true });
  const part = `${target}.${process.pid}`;
  try {
    if (format === 'gz') await pipeline(decompressed(bundle.path), createGzip({ level: constants.Z_BEST_SPEED }), createWriteStream(part));
    else await pipeline(decompressed(bundle.path), createWriteStream(part));
    renameSync(part, target);
  } catch (cause) {
    if (cause instanceof BundleError) throw new DeployError(`the device has no zstd, and here: ${cause.message}`, 'install it on either: apt-get install zstd; or make the bundle anew: npm run bundle', { cause });
    throw cause;
  } finally {
    rmSync(part, { force: true });
  }
  return target;
}
