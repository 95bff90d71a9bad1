/**
 * The bundle for arm64, cross-compiled and run by qemu's user mode: its own Node.js, both processes of the agent, the addon and
 * llama.cpp's arm64 libraries. Held against what this machine's own build does.
 */
import { execFile, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { unpackBundle } from '@moefleet/runtime';
import { buildBundle, startBundledAgent } from '../harness/bundle';
import { FIXTURES, MODEL, REPO, WIKITEXT } from '../harness/paths';
import { until } from '../harness/ports';
import { complete } from '../harness/test-fleet';

/** Debian's arm64 C library; the processor has what boards of these days have (dot products, no SVE, which qemu is slow at). */
const QEMU = ['-L', '/usr/aarch64-linux-gnu', '-cpu', 'cortex-a76'];
const NATIVE = join(REPO, 'edge-agent', 'native', 'build');
const TOKENS = 512;

const missing = process.arch !== 'x64' ? 'an x64 machine' : ['qemu-aarch64', 'aarch64-linux-gnu-g++'].find((tool) => spawnSync(tool, ['--version']).status !== 0) ?? null;
if (missing) process.stderr.write(`\nTHE ARM64 BUNDLE IS NOT TRIED: ${missing} is missing; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user\n`);
const describeHere = missing ? describe.skip : describe;

it('can be tried where it is required', () => {
  const inCi = ['true', '1'].includes(process.env['CI'] ?? '');
  expect(inCi && missing ? `${missing} is missing` : null).toBeNull();
});

describeHere('the arm64 bundle under qemu', () => {
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-arm64-'));
  const slot = join(folder, 'slot');
  const run = promisify(execFile);
  const qemu = async (program: string, ...args: string[]): Promise<string> => (await run('qemu-aarch64', [...QEMU, program, ...args], { maxBuffer: 1 << 26 })).stdout;

  beforeAll(async () => {
    const bundle = await buildBundle(['--arch', 'arm64', '--out', folder, '--level', '1']);
    await unpackBundle(bundle.file, slot);
  }, 600_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('holds machine code for arm64 alone', () => {
    const machine = (path: string): number => readFileSync(join(slot, path)).readUInt16LE(18);
    const manifest = JSON.parse(readFileSync(join(slot, 'manifest.json'), 'utf8')) as { files: Record<string, unknown> };
    const programs = ['bin/node', ...Object.keys(manifest.files).filter((path) => /\.(node|so)$/.test(path))];
    expect(programs.length).toBeGreaterThan(10);
    for (const path of programs) expect(`${path}: ${machine(path)}`).toBe(`${path}: 183`);
  });

  it('decides on recorded router logits exactly what the x64 build decides, under every method and eviction policy', async () => {
    await run(process.execPath, [join(NATIVE, '..', 'build.mjs'), '--bundle', 'x64']);
    const logits = join(folder, 'logits');
    await run(process.execPath, [join(REPO, 'test', 'harness', 'record-logits.mjs'), join(NATIVE, 'moefleet_engine.node'), MODEL, logits]);
    await run(join(NATIVE, 'bundle-x64', 'routing_decisions'), [logits, join(folder, 'x64')]);
    await qemu(join(NATIVE, 'bundle-arm64', 'routing_decisions'), logits, join(folder, 'arm64'));
    const [ours, theirs] = [readFileSync(join(folder, 'x64')), readFileSync(join(folder, 'arm64'))];
    // 199 tokens, 6 layers, 4 selected and 4 evicted, 9 methods and 4 policies.
    expect(ours.length).toBe(199 * 6 * 8 * 36 * 4);
    expect(theirs.equals(ours)).toBe(true);
  }, 600_000);

  it('scores a text as the x64 build does: at least 99% of the experts, cross-entropy within 0.002 nats', async () => {
    interface Score { version: string; crossEntropy: number; topK: number; routes: number[]; }
    const script = join(REPO, 'test', 'harness', 'score-text.mjs');
    const ours = JSON.parse((await run(process.execPath, [script, join(NATIVE, 'moefleet_engine.node'), MODEL, WIKITEXT, String(TOKENS)], { maxBuffer: 1 << 26 })).stdout) as Score;
    const theirs = JSON.parse(await qemu(join(slot, 'bin', 'node'), script, join(slot, 'lib/native/build/moefleet_engine.node'), MODEL, WIKITEXT, String(TOKENS))) as Score;
    expect(theirs.version).toContain('armv8');
    expect(theirs.routes.length).toBe(ours.routes.length);
    let shared = 0;
    for (let at = 0; at < ours.routes.length; at += ours.topK) {
      const chosen = new Set(theirs.routes.slice(at, at + ours.topK));
      shared += ours.routes.slice(at, at + ours.topK).filter((expert) => chosen.has(expert)).length;
    }
    process.stdout.write(`arm64 against x64, ${TOKENS} tokens at λ 0.2: ${(100 * shared / ours.routes.length).toFixed(2)}% of the experts agree, cross-entropy ${theirs.crossEntropy.toFixed(5)} and ${ours.crossEntropy.toFixed(5)}\n`);
    expect(shared / ours.routes.length).toBeGreaterThanOrEqual(0.99);
    expect(Math.abs(theirs.crossEntropy - ours.crossEntropy)).toBeLessThanOrEqual(0.002);
  }, 600_000);

  it('runs the agent, which generates text', async () => {
    // The kernel cannot start arm64 programs here, so what the bundle calls bin/node hands itself to qemu, the engine host too.
    renameSync(join(slot, 'bin/node'), join(slot, 'bin/node-arm64'));
    writeFileSync(join(slot, 'bin/node'), `#!/bin/sh\nexec qemu-aarch64 ${QEMU.join(' ')} '${slot}/bin/node-arm64' --require '${folder}/exec-path.js' "$@"\n`);
    chmodSync(join(slot, 'bin/node'), 0o755);
    writeFileSync(join(folder, 'exec-path.js'), `process.execPath = ${JSON.stringify(join(slot, 'bin/node'))};\n`);
    const agent = await startBundledAgent(join(slot, 'bin/moefleet-agent'), [
      'run', '--model', MODEL, '--id', 'arm', '--state-dir', join(folder, 'state'), '--coordinator', 'none', '--http', '127.0.0.1:0', '--threads', '1', '--context', '256', '--memory-pressure', 'off',
    ]);
    try {
      await until('the arm64 agent serves', async () => (await fetch(`${agent.httpUrl}/healthz`)).ok, 120_000);
      const { text, completionTokens } = await complete(agent.httpUrl, { prompt: readFileSync(join(FIXTURES, 'wikitext.txt'), 'utf8').slice(0, 80), tokens: 8 });
      expect(completionTokens).toBe(8);
      expect(text.trim()).not.toBe('');
    } finally {
      expect(await agent.stop()).toBe(0);
    }
  }, 600_000);
});
