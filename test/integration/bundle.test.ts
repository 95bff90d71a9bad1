/** A bundle for this machine's processor: the same bytes from every build, and an agent that runs from any folder. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parsePublicKey, SignatureError, unpackBundle, verifyBundle } from '@moefleet/runtime';
import { type BuiltBundle, buildBundle, startBundledAgent } from '../harness/bundle';
import { MODEL, REPO } from '../harness/paths';
import { until } from '../harness/ports';
import { complete } from '../harness/test-fleet';

const folder = mkdtempSync(join(tmpdir(), 'moefleet-bundle-test-'));
const slot = join(folder, 'a folder with spaces');
let bundle: BuiltBundle;

beforeAll(async () => {
  execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', join(folder, 'key')]);
  bundle = await buildBundle(['--arch', process.arch, '--out', join(folder, 'one'), '--key', join(folder, 'key', 'bundle-key.pem')]);
  await verifyBundle(bundle.file, readFileSync(bundle.signature!, 'utf8'), parsePublicKey(readFileSync(join(folder, 'key', 'bundle-key.pub'), 'utf8')));
  await unpackBundle(bundle.file, slot);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('a bundle of the agent', () => {
  it('is the same, byte for byte, when it is built again under another time zone, locale, user mask and scratch folder', async () => {
    mkdirSync(join(folder, 'scratch'));
    const mask = process.umask(0o077);
    try {
      const again = await buildBundle(['--arch', process.arch, '--out', join(folder, 'two'), '--key', join(folder, 'key', 'bundle-key.pem')], { TZ: 'Asia/Kathmandu', LC_ALL: 'C', TMPDIR: join(folder, 'scratch') });
      expect(again.sha256).toBe(bundle.sha256);
      expect(readFileSync(again.file).equals(readFileSync(bundle.file))).toBe(true);
      expect(readFileSync(again.signature!, 'utf8')).toBe(readFileSync(bundle.signature!, 'utf8'));
    } finally {
      process.umask(mask);
    }
  });

  it('holds no path of the machine it was built on', () => {
    const found = readdirSync(slot, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile() && entry.name !== 'node')
      .filter((entry) => readFileSync(join(entry.parentPath, entry.name)).includes(REPO)).map((entry) => entry.name);
    expect(found).toEqual([]);
  });

  it('names every npm package of the compiled agent in its bill of materials, and has a licence text for each', () => {
    const sbom = JSON.parse(readFileSync(join(slot, 'sbom.cdx.json'), 'utf8')) as { bomFormat: string; components: { name: string; version: string; group?: string }[] };
    expect(sbom.bomFormat).toBe('CycloneDX');
    const names = sbom.components.map(({ name, group }) => (group ? `${group}/${name}` : name));
    expect(names).toEqual(expect.arrayContaining(['node', 'llama.cpp', `@node-llama-cpp/linux-${process.arch}`, 'fastify', 'pino']));
    const compiled = readFileSync(join(slot, 'lib', 'main.js'), 'utf8');
    const packages = new Set([...compiled.matchAll(/^\/\/ node_modules\/((?:@[^/]+\/)?[^/]+)\//gm)].map(([, name]) => name!));
    expect(packages.size).toBeGreaterThan(50);
    const licences = readdirSync(join(slot, 'licences'));
    for (const name of packages) expect(licences).toContain(`${name.replace('@', '').replace('/', '+')}.txt`);
  });

  it('runs from a folder it has not been in before, on its own Node.js and libraries, and generates text', async () => {
    const agent = await startBundledAgent(join(slot, 'bin', 'moefleet-agent'), [
      'run', '--model', MODEL, '--id', 'bundled', '--state-dir', join(folder, 'state'), '--coordinator', 'none', '--http', '127.0.0.1:0', '--threads', '1', '--memory-pressure', 'off',
      // Nothing but the bundle is there to be found.
    ], { PATH: '/usr/bin:/bin' });
    try {
      await until('the agent serves', async () => (await fetch(`${agent.httpUrl}/healthz`)).ok);
      expect((await complete(agent.httpUrl, { tokens: 8 })).completionTokens).toBe(8);
      const loaded = readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).map((pid) => mapsOf(pid)).find((maps) => maps.includes('moefleet_engine.node') && maps.includes(slot))!;
      const libraries = [...new Set([...loaded.matchAll(/\S*lib(?:llama|ggml)[^/\n]*\.so/g)].map(([path]) => path))];
      expect(libraries.length).toBeGreaterThanOrEqual(4);
    } finally {
      expect(await agent.stop()).toBe(0);
    }
  });

  it('says its version and its settings without a model', () => {
    const run = (...args: string[]): string => execFileSync(join(slot, 'bin', 'moefleet-agent'), args, { encoding: 'utf8' });
    expect(run('--version').trim()).toBe(bundle.version);
    expect(run('run', '--help')).toContain('--enrol-token <token>');
  });

  it('is refused under another key', async () => {
    execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', join(folder, 'other')]);
    const other = parsePublicKey(readFileSync(join(folder, 'other', 'bundle-key.pub'), 'utf8'));
    await expect(verifyBundle(bundle.file, readFileSync(bundle.signature!, 'utf8'), other)).rejects.toThrow(SignatureError);
  });

  it('is what its checksum file says', () => {
    const [line] = readFileSync(`${bundle.file}.sha256`, 'utf8').split('\n');
    expect(line).toBe(`${createHash('sha256').update(readFileSync(bundle.file)).digest('hex')}  ${bundle.file.split('/').at(-1)}`);
  });
});

/** Empty for a process that has gone or is somebody else's. */
function mapsOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/maps`, 'utf8');
  } catch {
    return '';
  }
}
