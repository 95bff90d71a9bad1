import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { MANIFEST_NAME, TAR_END, tarHeader, tarPadding } from '@moefleet/runtime';
import { bundleCargo } from './cargo-file';

let folder: string;
beforeEach(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-cargo-')); });
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A bundle without files. */
function bundle(): { path: string; tar: Buffer } {
  const manifest = Buffer.from(JSON.stringify({ format: 1, name: 'moefleet-agent', version: '1.0.0', arch: 'x64', node: '24.0.0', llama: 'v1', requires: { glibc: '2.34', glibcxx: '3.4.30' }, files: {} }));
  const tar = Buffer.concat([tarHeader({ path: `top/${MANIFEST_NAME}`, bytes: manifest.length, executable: false }), manifest, tarPadding(manifest.length), TAR_END]);
  const path = join(folder, 'moefleet-agent-1.0.0-linux-x64.tar.zst');
  writeFileSync(join(folder, 'plain.tar'), tar);
  const { status, stderr } = spawnSync('zstd', ['-qf', join(folder, 'plain.tar'), '-o', path], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`zstd is needed by this test; install the package zstd: ${stderr}`);
  return { path, tar };
}

test('hosts without zstd that ask at the same time get one file, whole', async () => {
  const { path, tar } = bundle();
  const cache = join(folder, 'cache');
  const cargo = await bundleCargo(path, null, cache);
  const files = await Promise.all(['gz', 'gz', 'tar', 'gz', 'tar', 'zst'].map((format) => cargo.as(format as 'gz')));
  expect(new Set(files.map((file) => file.path)).size).toBe(3);
  expect(gunzipSync(readFileSync(files[0]!.path))).toEqual(tar);
  expect(readFileSync(files[2]!.path)).toEqual(tar);
  for (const file of files) expect(file.sha256).toBe(createHash('sha256').update(readFileSync(file.path)).digest('hex'));
  expect(readdirSync(cache)).toHaveLength(2);
  expect((await (await bundleCargo(path, null, cache)).as('gz')).path).toBe(files[0]!.path);
});
