/**
 * What a bundle of the agent holds: `manifest.json`, the first entry of its archive. Every other entry is named in it
 * with size, mode and SHA-256, so that unpacking is bounded before it begins and whatever is not named is refused.
 */

export const MANIFEST_NAME = 'manifest.json';
/** of all files together; a bundle has some 150 MiB */
const UNPACKED_BOUND = 2 ** 30;
const FILES_BOUND = 2000;
export const MANIFEST_BOUND = 1 << 20;

/** A bundle that does not hold what it should; the text names it. */
export class BundleError extends Error {
  override readonly name = 'BundleError';
}

export interface BundleFile { readonly bytes: number; readonly sha256: string; readonly executable: boolean; }

export interface BundleManifest {
  readonly format: 1;
  readonly name: 'moefleet-agent';
  /** semantic version of the agent */
  readonly version: string;
  /** as Node names it */
  readonly arch: 'x64' | 'arm64';
  /** versions of what runs it */
  readonly node: string;
  readonly llama: string;
  /** the least versions of the device's libraries, `glibcxx` being that of libstdc++'s symbols */
  readonly requires: { readonly glibc: string; readonly glibcxx: string };
  /** by path within the bundle */
  readonly files: Readonly<Record<string, BundleFile>>;
}

/** Throws BundleError, which names the field and what would do. */
export function parseManifest(text: string): BundleManifest {
  let value: Record<string, unknown>;
  try {
    value = object(JSON.parse(text), 'it');
  } catch (cause) {
    throw new BundleError(`${MANIFEST_NAME} cannot be read: ${(cause as Error).message}`, { cause });
  }
  if (value['format'] !== 1) throw new BundleError(`${MANIFEST_NAME}: format ${show(value['format'])}; this release reads format 1`);
  if (value['name'] !== 'moefleet-agent') throw new BundleError(`${MANIFEST_NAME}: name ${show(value['name'])}; expected moefleet-agent`);
  const { arch } = value;
  if (arch !== 'x64' && arch !== 'arm64') throw new BundleError(`${MANIFEST_NAME}: arch ${show(arch)}; expected x64 or arm64`);
  const requires = object(value['requires'], 'requires');
  return {
    format: 1, name: 'moefleet-agent', arch,
    version: parseVersion(value['version']).text, node: string(value['node'], 'node'), llama: string(value['llama'], 'llama'),
    requires: { glibc: string(requires['glibc'], 'requires.glibc'), glibcxx: string(requires['glibcxx'], 'requires.glibcxx') },
    files: parseFiles(object(value['files'], 'files')),
  };
}

function parseFiles(value: Record<string, unknown>): Record<string, BundleFile> {
  const entries = Object.entries(value);
  if (entries.length > FILES_BOUND) throw new BundleError(`${MANIFEST_NAME}: ${entries.length} files; at most ${FILES_BOUND}`);
  let total = 0;
  const files: Record<string, BundleFile> = Object.create(null) as Record<string, BundleFile>;
  for (const [path, entry] of entries) {
    if (!isInnerPath(path) || path === MANIFEST_NAME) throw new BundleError(`${MANIFEST_NAME}: ${show(path)} is no path within a bundle`);
    const { bytes, sha256, executable } = object(entry, path);
    if (typeof bytes !== 'number' || !Number.isSafeInteger(bytes) || bytes < 0) throw new BundleError(`${MANIFEST_NAME}: ${path} has ${show(bytes)} bytes`);
    if (typeof sha256 !== 'string' || !/^[0-9a-f]{64}$/.test(sha256)) throw new BundleError(`${MANIFEST_NAME}: ${path} has SHA-256 ${show(sha256)}`);
    total += bytes;
    files[path] = { bytes, sha256, executable: executable === true };
  }
  if (total > UNPACKED_BOUND) throw new BundleError(`${MANIFEST_NAME}: ${total} bytes in all; at most ${UNPACKED_BOUND}`);
  return files;
}

/** Relative, in plain characters, without `.` and `..`. */
export function isInnerPath(path: string): boolean {
  return path.length <= 200 && /^[A-Za-z0-9_@+.-]+(\/[A-Za-z0-9_@+.-]+)*$/.test(path) && !path.split('/').some((part) => part === '.' || part === '..');
}

export interface Version { readonly text: string; readonly numbers: readonly [number, number, number]; readonly preRelease: string | null; }

/** A semantic version without build metadata, as it is in a bundle's file name. */
export function parseVersion(value: unknown): Version {
  const match = typeof value === 'string' && value.length <= 64 ? /^(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:-([0-9A-Za-z.-]+))?$/.exec(value) : null;
  if (!match) throw new BundleError(`version ${show(value)}; expected one such as 1.4.0 or 1.4.0-rc.1`);
  return { text: match[0], numbers: [Number(match[1]), Number(match[2]), Number(match[3])], preRelease: match[4] ?? null };
}

/** Below, at or above 0 as `a` is older than, the same as or newer than `b` (semver.org, precedence). */
export function compareVersions(a: Version, b: Version): number {
  for (let i = 0; i < 3; i++) if (a.numbers[i] !== b.numbers[i]) return a.numbers[i]! - b.numbers[i]!;
  if (a.preRelease === b.preRelease) return 0;
  if (a.preRelease === null) return 1;
  if (b.preRelease === null) return -1;
  const [left, right] = [a.preRelease.split('.'), b.preRelease.split('.')];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = compareIdentifiers(left[i]!, right[i]!);
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}

function compareIdentifiers(a: string, b: string): number {
  const [aNumber, bNumber] = [/^\d+$/.test(a), /^\d+$/.test(b)];
  if (aNumber && bNumber) return Number(a) - Number(b);
  if (aNumber !== bNumber) return aNumber ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}

function object(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new BundleError(`${MANIFEST_NAME}: ${name} is ${show(value)}; expected an object`);
  return value as Record<string, unknown>;
}

function string(value: unknown, name: string): string {
  if (typeof value !== 'string' || !/^[\w.+-]{1,64}$/.test(value)) throw new BundleError(`${MANIFEST_NAME}: ${name} is ${show(value)}; expected a version`);
  return value;
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? 'missing').slice(0, 80);
}
