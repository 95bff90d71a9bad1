/** The licence texts of everything in a bundle, one file per package. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const TEXT = /^(licen[cs]e|copying|notice)/i;

/** Entries of a bundle under `licences/`. */
export function licenceFiles(packages, { runtime, native }) {
  const apache = packages.find(({ name }) => name === '@grpc/grpc-js');
  const entries = {
    'licences/node.txt': { source: join(runtime, 'LICENSE') },
    'licences/llama.cpp.txt': { source: native.llamaLicence },
    [`licences/${fileName(native.llamaPackage.name)}.txt`]: { source: join(native.llamaPackage.folder, 'LICENSE') },
    'licences/moefleet.txt': { contents: `moefleet is licensed under the Apache License, version 2.0:\n\n${readFileSync(join(apache.folder, 'LICENSE'), 'utf8')}` },
  };
  for (const { name, version, licence, folder, ours } of packages) {
    if (ours) continue;
    const texts = readdirSync(folder).filter((file) => TEXT.test(file)).sort().map((file) => readFileSync(join(folder, file), 'utf8').trim());
    const head = `${name} ${version}, licence: ${licence}\n`;
    // Two versions of a package may be in, one below the other.
    const path = `licences/${fileName(name)}.txt`;
    const before = entries[path]?.contents ?? '';
    entries[path] = { contents: `${before}${head}\n${texts.length > 0 ? texts.join('\n\n') : readme(folder) ?? 'The package comes without a text of its licence.'}\n\n` };
  }
  return entries;
}

/** Some packages have their licence at the end of the README only. */
function readme(folder) {
  const file = join(folder, 'README.md');
  const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
  const at = text.search(/^#+ *licen[cs]e/im);
  return at === -1 ? null : text.slice(at).trim();
}

function fileName(name) {
  return name.replace('@', '').replace('/', '+');
}
