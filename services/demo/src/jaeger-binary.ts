/**
 * Where Jaeger comes from, in this order: JAEGER_BIN, the cache folder, a build through the Go module proxy.
 *
 * Jaeger has no Debian or npm package. Its module is downloaded at a fixed version (checked against Go's checksum
 * database) and built inside the module cache, where its own go.mod with its `replace` applies and its own go.sum
 * vouches for what it depends on.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

export const JAEGER_VERSION = 'v1.76.0';
const MODULE = 'github.com/jaegertracing/jaeger';

export const HOW_TO_GET_JAEGER =
  'Jaeger is not here. To get it: install Go >= 1.24 and run `./dev jaeger` (about five minutes, once), ' +
  'or set JAEGER_BIN to a jaeger v2 binary, or JAEGER_URL (and OTEL_EXPORTER_OTLP_ENDPOINT) to one that runs.';

export function cachedJaegerPath(): string {
  const cache = process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache');
  return join(cache, 'moefleet', `jaeger-${JAEGER_VERSION}`, 'jaeger');
}

/** A Jaeger that is there already, or null. Throws if JAEGER_BIN names nothing. */
export function findJaeger(): string | null {
  const named = process.env['JAEGER_BIN'];
  if (named) {
    if (!existsSync(named)) throw new Error(`JAEGER_BIN: no file at ${named}`);
    return named;
  }
  return existsSync(cachedJaegerPath()) ? cachedJaegerPath() : null;
}

export function canBuildJaeger(): boolean {
  const match = /go(\d+)\.(\d+)/.exec(spawnSync('go', ['env', 'GOVERSION'], { encoding: 'utf8' }).stdout ?? '');
  return match !== null && (Number(match[1]) > 1 || Number(match[2]) >= 24);
}

/** Builds it into the cache folder; about four minutes on two cores. `onProgress` gets a line now and then. */
export async function buildJaeger(onProgress: (line: string) => void): Promise<string> {
  const target = cachedJaegerPath();
  if (existsSync(target)) return target;
  const download = spawnSync('go', ['mod', 'download', '-json', `${MODULE}@${JAEGER_VERSION}`], { encoding: 'utf8', cwd: '/' });
  const folder = download.status === 0 ? (JSON.parse(download.stdout) as { Dir: string }).Dir : null;
  if (!folder) throw new Error(`Jaeger ${JAEGER_VERSION} could not be downloaded: ${(download.stderr + download.stdout).trim()}`);
  mkdirSync(join(target, '..'), { recursive: true });
  const partial = `${target}.${process.pid}`;
  const begun = Date.now();
  const timer = setInterval(() => onProgress(`building Jaeger ${JAEGER_VERSION}: ${Math.round((Date.now() - begun) / 1000)} s`), 10_000);
  try {
    await new Promise<void>((resolve, reject) => {
      const build = spawn('go', ['build', '-trimpath', '-ldflags', '-s -w', '-o', partial, './cmd/jaeger'], { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] });
      let errors = '';
      build.stderr.on('data', (data: Buffer) => { errors = (errors + data.toString()).slice(-2000); });
      build.once('error', reject);
      build.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`Jaeger did not build (exit ${code}): ${errors.trim()}`))));
    });
  } finally {
    clearInterval(timer);
  }
  renameSync(partial, target);
  return target;
}
