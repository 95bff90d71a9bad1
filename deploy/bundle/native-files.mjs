/** The machine code of a bundle: our addon and llama.cpp's prebuilt libraries, with one CPU backend per generation of processors. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Of node-llama-cpp's own addon and of programs; the engine uses neither. */
const LEFT_OUT = ['libllama-common.so'];

/** `{files, llama, llamaPackage}`: absolute paths, llama.cpp's release, and the package its libraries come from. */
export function nativeFiles(root, arch) {
  const platform = `linux-${arch}`;
  const folder = join(root, 'node_modules', '@node-llama-cpp', platform);
  if (!existsSync(folder)) throw new Error(`@node-llama-cpp/${platform} is not installed; run: npm ci --ignore-scripts`);
  const bins = join(folder, 'bins', platform);
  const libraries = readdirSync(bins).filter((name) => name.endsWith('.so') && !LEFT_OUT.includes(name)).sort();
  const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
  const { release } = JSON.parse(readFileSync(join(root, 'node_modules', 'node-llama-cpp', 'llama', 'binariesGithubRelease.json'), 'utf8'));
  return {
    files: [join(root, 'edge-agent', 'native', 'build', `bundle-${arch}`, 'moefleet_engine.node'), ...libraries.map((name) => join(bins, name))],
    llama: release,
    llamaPackage: { name: `@node-llama-cpp/${platform}`, version, folder },
    llamaLicence: join(root, 'edge-agent', 'native', 'build', 'llama-src', 'LICENSE'),
  };
}
