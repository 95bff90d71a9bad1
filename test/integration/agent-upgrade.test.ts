/**
 * Releases of the agent, from a real coordinator to a real agent under a bundle's launcher: one that is good stays, broken ones
 * give way to the one before by themselves, and what must not run is never unpacked.
 */
import { execFile, execFileSync } from 'node:child_process';
import { appendFileSync, cpSync, existsSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { unpackBundle, VERSION } from '@moefleet/runtime';
import { initFleet } from '../../coordinator/src/identity/init-fleet';
import { type BuiltBundle, buildBundle, type BundledAgent, startBundledAgent } from '../harness/bundle';
import { MODEL, REPO } from '../harness/paths';
import { until } from '../harness/ports';
import { complete, TestFleet } from '../harness/test-fleet';

const GARBAGE = `const send = process.send.bind(process);
process.send = (message, ...rest) => {
  if (message?.t === 'step' && message.step?.text) message.step.text = Buffer.from(' zq');
  return send(message, ...rest);
};
`;
/** Long enough for a good one on a busy machine. */
const TRIAL_SECONDS = 40;
/** What hangs takes all of it. */
const SHORT_TRIAL_SECONDS = 10;

const test = new TestFleet();
const { folder } = test;
const installed = join(folder, 'installed');
const state = join(folder, 'state');
const slots = join(state, 'slots');
/** Of the authority, and of the key that releases are signed with, as `fleet init` and `bundle:keygen` leave them. */
const keys = join(folder, 'fleet');
let agent: BundledAgent;

/** The installed bundle as another version, changed by `change`, signed unless told otherwise, at the coordinator. */
async function release(version: string, change: (root: string) => void = () => {}, key = join(keys, 'bundle-key.pem')): Promise<void> {
  const root = join(folder, `release-${version}`);
  cpSync(installed, root, { recursive: true, filter: (path) => !path.endsWith('bin/node') });
  const main = join(root, 'lib', 'main.js');
  writeFileSync(main, readFileSync(main, 'utf8').replaceAll(`VERSION = "${VERSION}"`, `VERSION = "${version}"`).replaceAll(`VERSION = '${VERSION}'`, `VERSION = '${version}'`));
  // The same Node.js a dozen times over would be most of the test.
  writeFileSync(join(root, 'bin', 'node'), `#!/bin/sh\nexec '${join(installed, 'bin', 'node')}' "$@"\n`, { mode: 0o755 });
  change(root);
  const { stdout } = await promisify(execFile)(process.execPath, [join(REPO, 'deploy', 'bundle', 'repack.mjs'), root, version, folder, key]);
  await test.cli('agent', 'push', (JSON.parse(stdout) as BuiltBundle).file);
  rmSync(root, { recursive: true });
}

/** What came of the rollout, and all that it says. */
async function upgrade(version: string, ...flags: string[]): Promise<{ state: string; text: string }> {
  // A rollout that fails ends with code 1; its outcome is what counts here.
  const args = ['agent', 'upgrade', version, '--device', 'board', '--soak', '0s', '--operator', test.fleet.operator, '--json', ...flags];
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [join(REPO, 'services', 'cli', 'bin', 'moefleet.js'), ...args], { env: process.env }).catch((error: { stdout: string; stderr: string }) => error);
  if (!stdout.startsWith('{')) throw new Error(stderr);
  return { state: (JSON.parse(stdout) as { rollout: { state: string } }).rollout.state, text: stdout };
}

async function runningVersion(): Promise<string> {
  const device = await test.device('board') as unknown as { info: { agentVersion: string } | null; online: boolean };
  return device.online ? device.info?.agentVersion ?? '' : '';
}

function httpUrl(): string {
  return (JSON.parse(readFileSync(join(slots, 'running.json'), 'utf8')) as { httpUrl: string }).httpUrl;
}

async function serves(version: string): Promise<void> {
  await until(`the agent ${version} is connected and serves`, async () => await runningVersion() === version && (await complete(httpUrl(), { tokens: 4 })).completionTokens === 4, 90_000, 500);
}

beforeAll(async () => {
  await initFleet(keys, 'fleet', [], Date.now());
  execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', keys]);
  const bundle = await buildBundle(['--arch', process.arch, '--out', folder, '--level', '1']);
  await unpackBundle(bundle.file, installed);
  await test.fleet.startRedis();
  await test.fleet.startCoordinator(['--artifact-dir', join(folder, 'artifacts'), '--tls-dir', keys]);
  // Of this file alone: jest gives each a copy, which children get where it is handed to them.
  Object.assign(process.env, { MOEFLEET_CA: join(keys, 'ca.pem'), MOEFLEET_TOKEN_FILE: join(keys, 'moefleet-admin.token') });
  const { secret } = await test.cli<{ secret: string }>('token', 'create');
  agent = await startBundledAgent(join(installed, 'bin', 'moefleet-agent'), [
    'run', '--model', MODEL, '--id', 'board', '--state-dir', state, '--coordinator', test.fleet.gateway, '--http', '127.0.0.1:0', '--threads', '1', '--max-cache', '7.2MiB',
    '--memory-pressure', 'off', '--trial', String(TRIAL_SECONDS), '--enrol-token', secret,
  ]);
  await test.online('board');
}, 600_000);

afterAll(async () => {
  await agent?.stop();
  await test.stop();
});

describe('an upgrade of the agent', () => {
  it('stays where it is good, under the same launcher, with λ and all that was set', async () => {
    await test.cli('lambda', 'set', '0.2', '--device', 'board');
    await release('0.2.0');
    expect(await upgrade('0.2.0')).toMatchObject({ state: 'DONE' });
    await serves('0.2.0');
    expect(readlinkSync(join(slots, 'current'))).toBe('a');
    expect(existsSync(join(slots, 'trying'))).toBe(false);
    expect(readFileSync(join(slots, 'floor'), 'utf8').trim()).toBe('0.2.0');
    expect(agent.child.exitCode).toBeNull();
    expect((await test.device('board')).reported!.effective.lambda).toBe(0.2);
  }, 300_000);

  it.each<[string, string, (root: string) => void, string]>([
    ['crashes before it can speak', '0.3.1', (root) => writeFileSync(join(root, 'lib', 'main.js'), 'process.exit(3);\n'), 'ended before it was healthy'],
    ['is no program at all', '0.3.2', (root) => writeFileSync(join(root, 'bin', 'node'), 'nothing'), 'ended before it was healthy'],
    ['serves garbage', '0.3.3', (root) => {
      const host = join(root, 'lib', 'host', 'host-main.js');
      writeFileSync(host, GARBAGE + readFileSync(host, 'utf8'));
    }, 'it serves something else'],
  ])('gives way to the one before, by itself, where the new one %s', async (_, version, change, reason) => {
    await release(version, change);
    const outcome = await upgrade(version);
    expect(outcome).toMatchObject({ state: 'ROLLED_BACK' });
    expect(outcome.text).toContain(reason);
    await serves('0.2.0');
    expect(readlinkSync(join(slots, 'current'))).toBe('a');
  }, 300_000);

  it('is refused before anything is unpacked: by another key than was pinned at enrolment, changed after it was signed, older than what has run', async () => {
    execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', join(folder, 'other')]);
    // A coordinator in other hands would tell the other key; the device is not asked again.
    cpSync(join(folder, 'other', 'bundle-key.pub'), join(keys, 'bundle-key.pub'));
    await release('0.4.0', () => {}, join(folder, 'other', 'bundle-key.pem'));
    expect((await upgrade('0.4.0')).text).toContain('signed by key');
    await release('0.4.1');
    const { artifacts } = await test.cli<{ artifacts: { name: string; sha256: string }[] }>('agent', 'releases');
    appendFileSync(join(folder, 'artifacts', 'blobs', artifacts.find(({ name }) => name.includes('0.4.1'))!.sha256), 'x');
    expect((await upgrade('0.4.1')).text).toContain('more than the');
    await release('0.1.9');
    expect((await upgrade('0.1.9')).text).toContain('older than 0.2.0');
    expect((await upgrade('9.9.9')).text).toContain('there is no artifact moefleet-agent-9.9.9');
    await serves('0.2.0');
    expect(readlinkSync(join(slots, 'current'))).toBe('a');
  }, 300_000);

  it('goes to an older release where that is allowed, and back to the installed one where nothing is set', async () => {
    expect(await upgrade('0.1.9', '--allow-downgrade')).toMatchObject({ state: 'DONE' });
    await serves('0.1.9');
    await test.cli('agent', 'auto', '--device', 'board', '--soak', '0s');
    await serves(VERSION);
    expect(existsSync(join(slots, 'current'))).toBe(false);
  }, 300_000);

  it('that a power cut ends on trial has failed', async () => {
    // What a launcher finds that was cut off in the middle of a trial.
    await agent.stop();
    const trial = join(slots, 'trying');
    writeFileSync(trial, 'installed b 0.3.3\n');
    execFileSync('ln', ['-sfn', 'b', join(slots, 'current')]);
    agent = await startBundledAgent(agent.child.spawnfile, [...agent.child.spawnargs.slice(1), '--trial', String(SHORT_TRIAL_SECONDS)]);
    expect(JSON.parse(readFileSync(join(slots, 'outcome.json'), 'utf8'))).toMatchObject({ version: '0.3.3', ok: false });
    expect(existsSync(trial)).toBe(false);
    await serves(VERSION);
  }, 300_000);

  it('gives way to the one before, by itself, where the new one hangs', async () => {
    await release('0.5.0', (root) => writeFileSync(join(root, 'lib', 'main.js'), 'setInterval(() => {}, 1000);\n'));
    const outcome = await upgrade('0.5.0');
    expect(outcome).toMatchObject({ state: 'ROLLED_BACK' });
    expect(outcome.text).toContain(`not healthy within ${SHORT_TRIAL_SECONDS} s: it does not listen`);
    await serves(VERSION);
  }, 300_000);
});
