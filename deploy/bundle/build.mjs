#!/usr/bin/env node
/**
 * `npm run bundle`: everything an agent needs, in one archive per processor, signed. What is inside and how it is laid
 * out is in README.md. The bytes follow from the sources, the pinned packages and the compiler alone: no time, path,
 * user or order of a folder enters, so that two builds are the same file.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { parseVersion, VERSION } from '@moefleet/runtime';
import { bundledPackages } from './bundled-packages.mjs';
import { requiredSymbols } from './elf-needs.mjs';
import { licenceFiles } from './licences.mjs';
import { NODE_VERSION, nodeRuntime } from './node-runtime.mjs';
import { nativeFiles } from './native-files.mjs';
import { packBundle, ZSTD_LEVEL } from './pack.mjs';
import { softwareBillOfMaterials } from './sbom.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));
const ARCHITECTURES = ['x64', 'arm64'];

const HELP = `usage: npm run bundle -- [--arch x64|arm64]… [--out FOLDER] [--key FILE] [--version VERSION] [--level N] [--json]

Builds moefleet-agent-VERSION-linux-ARCH.tar.zst with its SHA-256 and, given a key, its signature.

  --arch ARCH        x64 or arm64; both unless given. The other processor needs its cross compiler
                     (Debian: g++-aarch64-linux-gnu)
  --out FOLDER       where to (default: dist-bundle)
  --key FILE         private key that signs it (npm run bundle:keygen); agents refuse an unsigned bundle
  --version VERSION  what the agent calls itself (default: ${VERSION}, the version of the sources)
  --level N          of zstd, 1 to 19 (default: ${ZSTD_LEVEL}); 1 is quick, for trying things out
  --json             print what was made as JSON

Example:
  npm run bundle -- --arch arm64 --key fleet/bundle-key.pem
`;

const say = (text) => process.stderr.write(`bundle: ${text}\n`);

/** null: help was asked for. */
function options() {
  const { values } = parseArgs({
    options: {
      arch: { type: 'string', multiple: true, default: ARCHITECTURES }, out: { type: 'string', default: join(root, 'dist-bundle') }, key: { type: 'string' },
      version: { type: 'string', default: VERSION }, level: { type: 'string', default: String(ZSTD_LEVEL) }, json: { type: 'boolean', default: false }, help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return null;
  const unknown = values.arch.find((arch) => !ARCHITECTURES.includes(arch));
  if (unknown !== undefined) throw new Error(`--arch ${unknown}: give one of ${ARCHITECTURES.join(', ')}`);
  parseVersion(values.version);
  const level = Number(values.level);
  if (!Number.isInteger(level) || level < 1 || level > 19) throw new Error(`--level ${values.level}: give a whole number from 1 to 19`);
  return { ...values, level, out: resolve(values.out), keyPem: values.key === undefined ? null : readFileSync(values.key, 'utf8') };
}

/** The agent's programs, each with all of its modules in one file. */
async function compileAgent(folder, version) {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: [{ in: 'edge-agent/dist/bundle/main.js', out: 'main' }, { in: 'edge-agent/dist/bundle/judge.js', out: 'judge' }, { in: 'edge-agent/dist/host/host-main.js', out: 'host/host-main' }],
    outdir: folder, bundle: true, platform: 'node', target: 'node22', format: 'cjs', metafile: true, logLevel: 'warning',
    plugins: version === VERSION ? [] : [{
      name: 'version',
      setup: ({ onLoad }) => onLoad({ filter: /services\/runtime\/dist\/version\.js$/ }, () => ({ contents: `exports.VERSION = ${JSON.stringify(version)};` })),
    }],
  });
  return metafile;
}

/** By path within the bundle: `{source}` or `{contents}`, and whether it is executable. */
function contents(arch, version, compiled, metafile) {
  const runtime = nodeRuntime(arch, say);
  const native = nativeFiles(root, arch);
  const packages = bundledPackages(root, metafile);
  const inBundle = (name) => ({ source: fileURLToPath(new URL(`bin/${name}`, import.meta.url)), executable: true });
  return {
    'bin/moefleet-agent': inBundle('moefleet-agent'),
    'bin/node': { source: join(runtime, 'bin', 'node'), executable: true },
    'lib/main.js': { source: join(compiled, 'main.js') },
    // What compresses router windows looks for its module beside the program.
    'lib/zstd.wasm': { source: join(root, 'node_modules', '@bokuweb', 'zstd-wasm', 'dist', 'common', 'zstd.wasm') },
    'lib/judge.js': { source: join(compiled, 'judge.js') },
    'lib/host/host-main.js': { source: join(compiled, 'host', 'host-main.js') },
    ...Object.fromEntries(native.files.map((source) => [`lib/native/build/${basename(source)}`, { source }])),
    ...licenceFiles(packages, { runtime, native }),
    'sbom.cdx.json': { contents: softwareBillOfMaterials({ root, version, arch, packages, nodeVersion: NODE_VERSION, llama: native.llama, llamaPackage: native.llamaPackage }) },
  };
}

function readAll(entries) {
  return Object.entries(entries).map(([path, { source, contents: text, executable = false }]) => ({ path, executable, data: source === undefined ? Buffer.from(text) : readFileSync(source) }));
}

async function bundle(arch, { version, out, keyPem, level }, compiled, metafile) {
  say(`building the addon for ${arch}`);
  execFileSync(process.execPath, [join(root, 'edge-agent', 'native', 'build.mjs'), '--bundle', arch], { stdio: ['ignore', 'inherit', 'inherit'] });
  const files = readAll(contents(arch, version, compiled, metafile));
  const { llama } = nativeFiles(root, arch);
  return packBundle({ files, about: { version, arch, node: NODE_VERSION, llama, requires: requiredSymbols(files) }, out, keyPem, say, level });
}

async function bundleAll(wanted) {
  mkdirSync(wanted.out, { recursive: true });
  const scratch = mkdtempSync(join(tmpdir(), 'moefleet-bundle-'));
  try {
    const metafile = await compileAgent(scratch, wanted.version);
    const made = [];
    for (const arch of new Set(wanted.arch)) made.push(await bundle(arch, wanted, scratch, metafile));
    return made;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function madeText({ file, bytes, sha256, keyId }) {
  return `${file}\n  ${(bytes / 2 ** 20).toFixed(1)} MiB, SHA-256 ${sha256}\n  ${keyId ? `signed by key ${keyId}` : 'NOT SIGNED: agents refuse it; give --key (npm run bundle:keygen)'}`;
}

try {
  const wanted = options();
  if (wanted === null) console.log(HELP);
  else {
    const made = await bundleAll(wanted);
    console.log(wanted.json ? JSON.stringify({ bundles: made }) : made.map(madeText).join('\n'));
  }
} catch (error) {
  say(error.message);
  process.exitCode = 1;
}
