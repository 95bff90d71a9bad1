#!/usr/bin/env node
/**
 * `npm run bundle`: everything an agent needs, in one archive per processor, signed. What is inside and how it is laid
 * out is in README.md. The bytes follow from the sources, the pinned packages and the compiler alone: no time, path,
 * user or order of a folder enters, so that two builds are the same file.
 */
import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { fileDigest, MANIFEST_NAME, parseManifest, parseVersion, publicKeyOf, signDigest, TAR_END, tarHeader, tarPadding, VERSION } from '@moefleet/runtime';
import { bundledPackages } from './bundled-packages.mjs';
import { requiredSymbols } from './elf-needs.mjs';
import { licenceFiles } from './licences.mjs';
import { NODE_VERSION, nodeRuntime } from './node-runtime.mjs';
import { nativeFiles } from './native-files.mjs';
import { softwareBillOfMaterials } from './sbom.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));
const ARCHITECTURES = ['x64', 'arm64'];
/** A level above gains 2% and takes three times as long. */
const ZSTD_LEVEL = 12;

const HELP = `usage: npm run bundle -- [--arch x64|arm64]… [--out FOLDER] [--key FILE] [--version VERSION] [--json]

Builds moefleet-agent-VERSION-linux-ARCH.tar.zst with its SHA-256 and, given a key, its signature.

  --arch ARCH        x64 or arm64; both unless given. The other processor needs its cross compiler
                     (Debian: g++-aarch64-linux-gnu)
  --out FOLDER       where to (default: dist-bundle)
  --key FILE         private key that signs it (npm run bundle:keygen); agents refuse an unsigned bundle
  --version VERSION  what the agent calls itself (default: ${VERSION}, the version of the sources)
  --json             print what was made as JSON

Example:
  npm run bundle -- --arch arm64 --key fleet/bundle-key.pem
`;

function fail(message) {
  console.error(`bundle: ${message}`);
  process.exit(1);
}

function options() {
  const { values } = parseArgs({
    options: {
      arch: { type: 'string', multiple: true, default: ARCHITECTURES }, out: { type: 'string', default: join(root, 'dist-bundle') }, key: { type: 'string' },
      version: { type: 'string', default: VERSION }, json: { type: 'boolean', default: false }, help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  const unknown = values.arch.find((arch) => !ARCHITECTURES.includes(arch));
  if (unknown !== undefined) fail(`--arch ${unknown}: give one of ${ARCHITECTURES.join(', ')}`);
  parseVersion(values.version);
  return { ...values, out: resolve(values.out), keyPem: values.key === undefined ? null : readFileSync(values.key, 'utf8') };
}

const { arch: architectures, out, keyPem, version, json } = options();
const say = (text) => process.stderr.write(`bundle: ${text}\n`);

/** The agent's two programs, each with all of its modules in one file. */
async function compileAgent(folder) {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: [{ in: 'edge-agent/dist/bundle/main.js', out: 'main' }, { in: 'edge-agent/dist/host/host-main.js', out: 'host/host-main' }],
    outdir: folder, bundle: true, platform: 'node', target: 'node22', format: 'cjs', metafile: true, logLevel: 'warning',
    plugins: version === VERSION ? [] : [{
      name: 'version',
      setup: ({ onLoad }) => onLoad({ filter: /services\/runtime\/dist\/version\.js$/ }, () => ({ contents: `exports.VERSION = ${JSON.stringify(version)};` })),
    }],
  });
  return metafile;
}

/** By path within the bundle: `{source}` or `{contents}`, and whether it is executable. */
function contents(arch, compiled, metafile) {
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
    'lib/host/host-main.js': { source: join(compiled, 'host', 'host-main.js') },
    ...Object.fromEntries(native.files.map((source) => [`lib/native/build/${basename(source)}`, { source }])),
    ...licenceFiles(packages, { runtime, native }),
    'sbom.cdx.json': { contents: softwareBillOfMaterials({ root, version, arch, packages, nodeVersion: NODE_VERSION, llama: native.llama, llamaPackage: native.llamaPackage }) },
  };
}

function readAll(entries) {
  return Object.entries(entries)
    .map(([path, { source, contents: text, executable = false }]) => ({ path, executable, data: source === undefined ? Buffer.from(text) : readFileSync(source) }))
    .sort((a, b) => (a.path < b.path ? -1 : 1));
}

function manifestOf(arch, files, native) {
  const text = `${JSON.stringify({
    format: 1, name: 'moefleet-agent', version, arch, node: NODE_VERSION, llama: native.llama, requires: requiredSymbols(files),
    files: Object.fromEntries(files.map(({ path, data, executable }) => [path, { bytes: data.length, sha256: createHash('sha256').update(data).digest('hex'), executable }])),
  }, null, 1)}\n`;
  parseManifest(text);
  return { path: MANIFEST_NAME, executable: false, data: Buffer.from(text) };
}

function archive(name, files) {
  const parts = files.flatMap(({ path, executable, data }) => [tarHeader({ path: `${name}/${path}`, bytes: data.length, executable }), data, tarPadding(data.length)]);
  return Buffer.concat([...parts, TAR_END]);
}

/** By the bundle's own Node.js for this machine, so that the library and hence the bytes are the same everywhere. */
function compress(tar, target) {
  const plain = `${target}.tar`;
  writeFileSync(plain, tar);
  execFileSync(join(nodeRuntime(process.arch, say), 'bin', 'node'), [fileURLToPath(new URL('compress.mjs', import.meta.url)), plain, target, String(ZSTD_LEVEL)], { stdio: ['ignore', 'inherit', 'inherit'] });
  rmSync(plain);
}

async function bundle(arch, compiled, metafile) {
  say(`building the addon for ${arch}`);
  execFileSync(process.execPath, [join(root, 'edge-agent', 'native', 'build.mjs'), '--bundle', arch], { stdio: ['ignore', 'inherit', 'inherit'] });
  const files = readAll(contents(arch, compiled, metafile));
  const name = `moefleet-agent-${version}-linux-${arch}`;
  const target = join(out, `${name}.tar.zst`);
  say(`packing ${basename(target)}`);
  const part = `${target}.part-${process.pid}`;
  compress(archive(name, [manifestOf(arch, files, nativeFiles(root, arch)), ...files]), part);
  const data = readFileSync(part);
  const sha256 = createHash('sha256').update(data).digest('hex');
  const signature = `${target}.minisig`;
  rmSync(signature, { force: true });
  if (keyPem) writeFileSync(signature, signDigest(await fileDigest(part), keyPem, `moefleet-agent ${version} linux-${arch}`));
  writeFileSync(`${target}.sha256`, `${sha256}  ${basename(target)}\n`);
  renameSync(part, target);
  return { file: target, version, arch, bytes: statSync(target).size, sha256, signature: keyPem ? signature : null, keyId: keyPem ? publicKeyOf(keyPem).keyId : null };
}

mkdirSync(out, { recursive: true });
const scratch = mkdtempSync(join(tmpdir(), 'moefleet-bundle-'));
try {
  const metafile = await compileAgent(scratch);
  const made = [];
  for (const arch of new Set(architectures)) made.push(await bundle(arch, scratch, metafile));
  if (json) console.log(JSON.stringify({ bundles: made }));
  else for (const { file, bytes, sha256, keyId } of made) console.log(`${file}\n  ${(bytes / 2 ** 20).toFixed(1)} MiB, SHA-256 ${sha256}\n  ${keyId ? `signed by key ${keyId}` : 'NOT SIGNED: agents refuse it; give --key (npm run bundle:keygen)'}`);
} catch (error) {
  fail(error.message);
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
