/** No committed file may name a package registry's address: a build must work against any mirror. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const registries = [['registry', 'npmjs', 'org'], ['registry', 'yarnpkg', 'com'], ['proxy', 'golang', 'org'], ['pypi', 'org'], ['static', 'crates', 'io']].map((parts) => parts.join('.'));
const files = execFileSync('git', ['ls-files', '-z'], { encoding: 'utf8' }).split('\0').filter(Boolean);
const found = files.flatMap((file) => {
  if (/\.(gguf|binpb|png)$/.test(file)) return [];
  const text = readFileSync(file, 'utf8');
  return registries.filter((address) => text.includes(address)).map((address) => `${file}: ${address}`);
});
if (found.length > 0) {
  console.error(`registry addresses in committed files:\n${found.join('\n')}`);
  process.exit(1);
}
