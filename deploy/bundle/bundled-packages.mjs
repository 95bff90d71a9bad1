/** Which npm packages ended up in the compiled agent, by what esbuild says that it took. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** `[{name, version, licence, folder, ours}]`, sorted by folder. */
export function bundledPackages(root, metafile) {
  const used = new Set(Object.values(metafile.outputs).flatMap(({ inputs }) => Object.keys(inputs).filter((file) => inputs[file].bytesInOutput > 0)));
  const folders = [...new Set([...used].map((file) => packageFolder(root, file)))].sort();
  return folders.map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'));
    return { name, version, licence: typeof license === 'string' ? license : 'see its licence text', folder: join(root, folder), ours: !folder.includes('node_modules') };
  });
}

/** The nearest folder upwards whose package.json names a package; those that only say `"type"` are no package. */
function packageFolder(root, file) {
  for (let folder = dirname(file); folder !== '.'; folder = dirname(folder)) {
    const path = join(root, folder, 'package.json');
    if (existsSync(path) && JSON.parse(readFileSync(path, 'utf8')).version !== undefined) return folder;
  }
  throw new Error(`${file} belongs to no package`);
}
