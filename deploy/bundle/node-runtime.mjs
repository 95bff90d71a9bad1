/**
 * The Node.js that a bundle runs on: packages of the registry that npm is set up for, fetched by npm, held against the
 * integrity in node-runtime.json, and kept in the cache folder.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

const { version, packages } = JSON.parse(readFileSync(new URL('node-runtime.json', import.meta.url), 'utf8'));

export const NODE_VERSION = version;

/** Folder with `bin/node` and `LICENSE`. `arch`: x64 or arm64. */
export function nodeRuntime(arch, say) {
  const { name, integrity } = packages[arch];
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'moefleet');
  // Named by content too, so that another integrity is another folder.
  const folder = join(cache, `${name}-${version}-${createHash('sha256').update(integrity).digest('hex').slice(0, 12)}`);
  if (existsSync(folder)) return folder;
  say(`fetching ${name}@${version}`);
  mkdirSync(cache, { recursive: true });
  const part = mkdtempSync(join(cache, 'part-'));
  try {
    execFileSync('npm', ['pack', '--silent', `${name}@${version}`, '--pack-destination', part], { stdio: ['ignore', 'ignore', 'inherit'] });
    const archive = join(part, readdirSync(part)[0]);
    const found = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
    if (found !== integrity) throw new Error(`${name}@${version}: integrity ${found}, expected ${integrity} (deploy/bundle/node-runtime.json)`);
    execFileSync('tar', ['-xzf', archive, '-C', part, 'package/bin/node', 'package/LICENSE']);
    try {
      renameSync(join(part, 'package'), folder);
    } catch (error) {
      // Another build was first.
      if (!existsSync(folder)) throw error;
    }
  } finally {
    rmSync(part, { recursive: true, force: true });
  }
  return folder;
}
