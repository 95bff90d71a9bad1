import { spawnSync } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BundleError, MANIFEST_NAME } from './manifest';
import { fileDigest, publicKeyOf, signDigest } from './minisign';
import { TAR_END, tarHeader, tarPadding } from './tar';
import { readBundleManifest, unpackBundle, verifyBundle } from './unpack';

interface Entry { path: string; data: Buffer; executable?: boolean; }

let folder: string;
beforeEach(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-unpack-')); });
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');
const text = (path: string, content: string, executable = false): Entry => ({ path, data: Buffer.from(content), executable });

function manifestOf(files: readonly Entry[], change: Record<string, unknown> = {}): Entry {
  return text(MANIFEST_NAME, JSON.stringify({
    format: 1, name: 'moefleet-agent', version: '1.2.3', arch: 'x64', node: '24.21.0', llama: 'v0.5.0', requires: { glibc: '2.34', glibcxx: '3.4.30' },
    files: Object.fromEntries(files.map(({ path, data, executable }) => [path, { bytes: data.length, sha256: sha256(data), executable: executable === true }])), ...change,
  }));
}

const member = ({ path, data, executable = false }: Entry, bytes = data.length): Buffer => Buffer.concat([tarHeader({ path: `top/${path}`, bytes, executable }), data, tarPadding(data.length)]);

/** Sets a field of a header that the writer would never write, and its checksum. */
function forged(header: Buffer, at: number, value: string, width: number): Buffer {
  header.fill(0, at, at + width);
  header.write(value, at, 'latin1');
  header.fill(0x20, 148, 156);
  header.write(`${header.subarray(0, 512).reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0')}\0 `, 148);
  return header;
}

function write(tar: Buffer): string {
  const plain = join(folder, 'bundle.tar');
  writeFileSync(plain, tar);
  const { status, stderr } = spawnSync('zstd', ['-qf', plain, '-o', `${plain}.zst`], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`zstd is needed by this test; install the package zstd: ${stderr}`);
  return `${plain}.zst`;
}

const FILES = [text('bin/run', '#!/bin/sh\n', true), text('lib/main.js', 'x'.repeat(70_000)), text('empty', '')];
const archive = (...members: Buffer[]): string => write(Buffer.concat([...members, TAR_END]));
const good = (): string => archive(member(manifestOf(FILES)), ...FILES.map((entry) => member(entry)));

describe('unpacking a bundle', () => {
  it('leaves what the manifest names, with its mode, and nothing else', async () => {
    const target = join(folder, 'slot');
    const manifest = await unpackBundle(good(), target);
    expect(manifest.version).toBe('1.2.3');
    expect(readdirSync(target, { recursive: true }).sort()).toEqual(['bin', 'bin/run', 'empty', 'lib', 'lib/main.js', MANIFEST_NAME].sort());
    expect(readFileSync(join(target, 'lib/main.js'), 'utf8')).toBe('x'.repeat(70_000));
    expect(statSync(join(target, 'bin/run')).mode & 0o111).toBe(0o111 & ~process.umask());
    expect(statSync(join(target, 'lib/main.js')).mode & 0o111).toBe(0);
  });

  it('reads the manifest without the rest, which may be damaged', async () => {
    const damaged = archive(member(manifestOf(FILES)), member(FILES[0]!), Buffer.alloc(512, 7));
    expect((await readBundleManifest(damaged)).arch).toBe('x64');
  });

  it('verifies a signature over the file as it is', async () => {
    const path = good();
    const pem = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
    const signature = signDigest(await fileDigest(path), pem, 'test');
    await verifyBundle(path, signature, publicKeyOf(pem));
    const bytes = readFileSync(path);
    bytes[bytes.length >> 1]! ^= 1;
    writeFileSync(path, bytes);
    await expect(verifyBundle(path, signature, publicKeyOf(pem))).rejects.toThrow('does not match its signature');
  });

  it.each<[string, () => string, string]>([
    ['a path out of the folder', () => archive(member(manifestOf(FILES)), member(text('../../evil', 'x'))), 'is not in manifest.json'],
    ['a path upwards without a top folder', () => archive(member(manifestOf(FILES)), forged(member(text('a', '')), 0, '../evil', 100)), 'is not in manifest.json'],
    ['a symbolic link', () => archive(member(manifestOf(FILES)), forged(member(text('bin/run', '')), 156, '2', 1)), 'only regular files'],
    ['a hard link', () => archive(member(manifestOf(FILES)), forged(member(text('bin/run', '')), 156, '1', 1)), 'only regular files'],
    ['a device', () => archive(member(manifestOf(FILES)), forged(member(text('bin/run', '')), 156, '3', 1)), 'only regular files'],
    ['an extended header that renames', () => archive(member(manifestOf(FILES)), forged(member(text('bin/run', '')), 156, 'x', 1)), 'only regular files'],
    ['a file that is not named', () => archive(member(manifestOf(FILES)), member(text('more', 'x'))), 'is not in manifest.json'],
    ['a file that is there twice', () => archive(member(manifestOf(FILES)), member(FILES[0]!), member(FILES[0]!)), 'is there twice'],
    ['a file of another size', () => archive(member(manifestOf(FILES)), member(text('bin/run', 'longer than it was'))), 'manifest.json says 10'],
    ['a file of other content', () => archive(member(manifestOf(FILES)), member(text('bin/run', '#!/bin/zz\n'))), 'SHA-256'],
    ['a missing file', () => archive(member(manifestOf(FILES)), member(FILES[0]!)), 'lib/main.js is missing'],
    ['no manifest first', () => archive(member(FILES[0]!), member(manifestOf(FILES))), 'expected manifest.json'],
    ['a manifest without bound', () => archive(member(text(MANIFEST_NAME, ' '.repeat(2 << 20)))), 'at most 1048576'],
    ['more bytes than the manifest names', () => write(Buffer.concat([member(manifestOf(FILES)), ...FILES.map((entry) => member(entry)), TAR_END, Buffer.from('more')])), 'after the archive\'s end'],
    ['a size that is no number', () => archive(member(manifestOf(FILES)), forged(member(FILES[0]!), 124, '-1', 12)), 'no octal number'],
    ['a wrong checksum', () => archive(member(manifestOf(FILES)), forged(member(FILES[0]!), 148, '0000001', 8).fill('0000001', 148, 155)), 'checksum is wrong'],
    ['its second half missing', () => write(member(manifestOf(FILES)).subarray(0, 700)), 'ends in the middle'],
    ['nothing in it', () => write(TAR_END), 'holds no manifest.json'],
  ])('refuses %s, and leaves nothing', async (_, make, reason) => {
    const path = make();
    const target = join(folder, 'slot');
    const refusal = await unpackBundle(path, target).then(() => null, (error: Error) => error);
    expect(refusal).toBeInstanceOf(BundleError);
    expect(refusal!.message).toContain(reason);
    expect(readdirSync(folder).sort()).toEqual(['bundle.tar', 'bundle.tar.zst']);
    expect(existsSync(join(folder, '..', 'evil'))).toBe(false);
  });

  it('stops a bomb at the size that the manifest names', async () => {
    // 4 GiB of zeros are 400 KB when compressed; nothing beyond the manifest may be written.
    const head = member(manifestOf([]));
    const bomb = tarHeader({ path: 'top/bomb', bytes: 2 ** 32, executable: false });
    const plain = join(folder, 'head.tar');
    writeFileSync(plain, Buffer.concat([head, bomb]));
    spawnSync('sh', ['-c', `{ cat head.tar; head -c 268435456 /dev/zero; } | zstd -q1 -o bomb.tar.zst`], { cwd: folder });
    await expect(unpackBundle(join(folder, 'bomb.tar.zst'), join(folder, 'slot'))).rejects.toThrow('is not in manifest.json');
    expect(existsSync(join(folder, 'slot'))).toBe(false);
  });

  it('refuses bytes that are no zstd, and a folder that is there', async () => {
    const path = join(folder, 'noise');
    writeFileSync(path, 'this is no bundle');
    await expect(unpackBundle(path, join(folder, 'slot'))).rejects.toThrow('cannot be decompressed');
    await expect(unpackBundle(good(), folder)).rejects.toThrow('EEXIST');
  });
});
