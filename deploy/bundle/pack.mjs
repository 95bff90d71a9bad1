/** From the files of a bundle to the bundle: manifest, archive, compression, signature. The bytes follow from the files and the key alone. */
import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fileDigest, MANIFEST_NAME, parseManifest, publicKeyOf, signDigest, TAR_END, tarHeader, tarPadding } from '@moefleet/runtime';
import { nodeRuntime } from './node-runtime.mjs';

/** A level above gains 2% and takes three times as long. */
export const ZSTD_LEVEL = 12;

/**
 * Writes `moefleet-agent-VERSION-linux-ARCH.tar.zst` into `out`. `files`: `[{path, data, executable}]`; `about`: what the manifest
 * says beside them (version, arch, node, llama, requires); `keyPem` null: not signed. Resolves with what was made.
 */
export async function packBundle({ files, about, out, keyPem, say, level = ZSTD_LEVEL }) {
  const { version, arch } = about;
  const sorted = [...files].sort((a, b) => (a.path < b.path ? -1 : 1));
  const name = `moefleet-agent-${version}-linux-${arch}`;
  const target = join(out, `${name}.tar.zst`);
  say(`packing ${basename(target)}`);
  const part = `${target}.part-${process.pid}`;
  compress(archive(name, [manifestOf(about, sorted), ...sorted]), part, level, say);
  const sha256 = createHash('sha256').update(readFileSync(part)).digest('hex');
  const signature = `${target}.minisig`;
  rmSync(signature, { force: true });
  if (keyPem) writeFileSync(signature, signDigest(await fileDigest(part), keyPem, `moefleet-agent ${version} linux-${arch}`));
  writeFileSync(`${target}.sha256`, `${sha256}  ${basename(target)}\n`);
  renameSync(part, target);
  return { file: target, version, arch, bytes: statSync(target).size, sha256, signature: keyPem ? signature : null, keyId: keyPem ? publicKeyOf(keyPem).keyId : null };
}

function manifestOf(about, files) {
  const text = `${JSON.stringify({
    format: 1, name: 'moefleet-agent', ...about,
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
function compress(tar, target, level, say) {
  const plain = `${target}.tar`;
  writeFileSync(plain, tar);
  try {
    execFileSync(join(nodeRuntime(process.arch, say), 'bin', 'node'), [fileURLToPath(new URL('compress.mjs', import.meta.url)), plain, target, String(level)], { stdio: ['ignore', 'inherit', 'inherit'] });
  } finally {
    rmSync(plain, { force: true });
  }
}
