import { BundleError, compareVersions, isInnerPath, parseManifest, parseVersion } from './manifest';

const manifest = (change: Record<string, unknown> = {}): string => JSON.stringify({
  format: 1, name: 'moefleet-agent', version: '1.2.3', arch: 'arm64', node: '24.21.0', llama: 'v0.5.0', requires: { glibc: '2.34', glibcxx: '3.4.30' },
  files: { 'bin/node': { bytes: 3, sha256: 'a'.repeat(64), executable: true } }, ...change,
});

describe('the manifest of a bundle', () => {
  it('is read as it was written', () => {
    expect(parseManifest(manifest())).toMatchObject({ version: '1.2.3', arch: 'arm64', files: { 'bin/node': { bytes: 3, executable: true } } });
  });

  it.each([
    ['no JSON', '{'], ['a list', '[]'], ['a later format', manifest({ format: 2 })], ['another program', manifest({ name: 'x' })], ['another processor', manifest({ arch: 'mips' })],
    ['a version that leaves the folder', manifest({ version: '../1.0.0' })], ['no files', manifest({ files: null })],
    ['a path upwards', manifest({ files: { '../evil': { bytes: 1, sha256: 'a'.repeat(64) } } })],
    ['an absolute path', manifest({ files: { '/etc/passwd': { bytes: 1, sha256: 'a'.repeat(64) } } })],
    ['itself', manifest({ files: { 'manifest.json': { bytes: 1, sha256: 'a'.repeat(64) } } })],
    ['a negative size', manifest({ files: { a: { bytes: -1, sha256: 'a'.repeat(64) } } })],
    ['more than fits', manifest({ files: { a: { bytes: 2 ** 40, sha256: 'a'.repeat(64) } } })],
    ['a hash that is none', manifest({ files: { a: { bytes: 1, sha256: 'zz' } } })],
  ])('is refused with %s', (_, text) => {
    expect(() => parseManifest(text)).toThrow(BundleError);
  });

  it('names files without leaving the bundle', () => {
    expect(['lib/main.js', 'licences/grpc+grpc-js.txt', '..a/b'].every(isInnerPath)).toBe(true);
    expect(['', '/a', 'a/', 'a//b', '../a', 'a/../b', 'a/./b', 'a\\b', 'a\0b', 'a b'].some(isInnerPath)).toBe(false);
  });
});

describe('versions', () => {
  it('are ordered as semver.org orders them', () => {
    const ordered = ['0.9.9', '1.0.0-alpha', '1.0.0-alpha.1', '1.0.0-alpha.beta', '1.0.0-beta', '1.0.0-beta.2', '1.0.0-beta.11', '1.0.0-rc.1', '1.0.0', '1.0.1', '1.10.0', '2.0.0'];
    for (let i = 0; i < ordered.length; i++) {
      for (let j = 0; j < ordered.length; j++) expect(Math.sign(compareVersions(parseVersion(ordered[i]), parseVersion(ordered[j])))).toBe(Math.sign(i - j));
    }
  });
});
