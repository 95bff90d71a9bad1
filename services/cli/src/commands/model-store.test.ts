import { copyFileSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startCoordinator, type TestCoordinator } from '../../../../coordinator/src/testing/test-coordinator';
import { startRedis, type TestRedis } from '../../../../test/harness/redis';
import { runCaptured } from '../testing/run-captured';

const MODEL = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');

interface Pushed { model: { name: string; bytes: string; chunks: number; ownBytes: string; manifestSha256: string; modelHash: string }; sentBytes: number; sentChunks: number }

let redis: TestRedis;
let coordinator: TestCoordinator;
let folder: string;
let packed: string;
beforeAll(async () => {
  redis = await startRedis();
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-store-'));
  packed = join(folder, 'tiny.gguf');
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_ARTIFACT_DIR: join(folder, 'store') } });
  expect((await run('model', 'pack', MODEL, packed)).code).toBe(0);
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
  rmSync(folder, { recursive: true, force: true });
});

const run = (...args: string[]) => runCaptured(args, { MOEFLEET_OPERATOR: coordinator.addresses().operatorAddress });
async function json<T>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await run(...args, '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as T;
}

test('a model is pushed once; of another version only what differs is sent, and goes with it', async () => {
  const first = await json<Pushed>('model', 'push', packed);
  expect(first).toMatchObject({ model: { name: 'tiny' }, sentChunks: first.model.chunks + 1 });
  expect(first.sentBytes).toBeGreaterThan(Number(first.model.bytes));
  expect(await json<Pushed>('model', 'push', packed)).toMatchObject({ sentBytes: 0, sentChunks: 0 });
  // Another version: the same experts, other scales of one norm, packed anew.
  const changed = join(folder, 'changed.gguf');
  copyFileSync(MODEL, changed);
  const { tensors } = await json<{ tensors: { name: string; offset: number; bytes: number }[] }>('model', 'inspect', changed);
  const file = openSync(changed, 'r+');
  writeSync(file, Buffer.from([0, 0, 0x80, 0x3f]), 0, 4, tensors.find(({ name }) => name === 'blk.2.attn_norm.weight')!.offset);
  const repacked = join(folder, 'tiny-v2.gguf');
  expect((await run('model', 'pack', changed, repacked)).code).toBe(0);
  const second = await json<Pushed>('model', 'push', repacked, '--name', 'v2');
  expect(second.sentBytes).toBeLessThan(Number(first.model.bytes) / 20);
  const { models } = await json<{ models: Pushed['model'][] }>('model', 'list');
  expect(models.map(({ name }) => name)).toEqual(['tiny', 'v2']);
  expect((await run('model', 'ls')).stdout).toMatch(/NAME +SIZE +CHUNKS +OWN.*\ntiny +[\d.]+ MiB/);
  const { freedBytes } = await json<{ freedBytes: number }>('model', 'remove', 'v2');
  expect(freedBytes).toBe(second.sentBytes);
});

test('files that are not packed, damaged, missing, or would take a name are refused with what to do', async () => {
  const plain = await run('model', 'push', MODEL);
  expect([plain.code, plain.stderr]).toEqual([2, expect.stringMatching(/is not packed.*moefleet model pack .*tinymoe-17m-q8_0\.gguf packed\.gguf/)]);
  expect(await run('model', 'push', join(folder, 'nowhere.gguf'))).toMatchObject({ code: 2, stderr: expect.stringContaining('no such file') });
  const damaged = join(folder, 'damaged.gguf');
  copyFileSync(packed, damaged);
  const { tensors } = await json<{ tensors: { name: string; offset: number }[] }>('model', 'inspect', packed);
  writeSync(openSync(damaged, 'r+'), Buffer.from('x'), 0, 1, tensors.find(({ name }) => name === 'blk.3.ffn_up_exps.weight')!.offset + 5);
  const before = readdirSync(join(folder, 'store'), { recursive: true }).length;
  expect(await run('model', 'push', damaged)).toMatchObject({ code: 1, stderr: expect.stringMatching(/1 of its parts are damaged \(blk\.3 expert 0\)/) });
  expect(readdirSync(join(folder, 'store'), { recursive: true })).toHaveLength(before);
  expect(await run('model', 'remove', 'nobody')).toMatchObject({ code: 1, stderr: expect.stringContaining('there is no model nobody') });
});

test('set pins it for devices, config explain says from where, remove is refused meanwhile', async () => {
  await coordinator.join({ id: 'a' });
  const set = await json<{ rollout: { state: string; what: string } }>('model', 'set', 'tiny', '--all', '--bandwidth', '2MB/s', '--quiet-hours', '22:00-06:00');
  expect(set.rollout).toMatchObject({ state: 'DONE', what: expect.stringMatching(/^model tiny \(\w{12}\), at most 2000000 bytes\/s, not in 22:00-06:00 on all devices$/) });
  const explained = await run('config', 'explain', 'a');
  expect(explained.stdout).toMatch(/model +.*tiny.*fleet pin/i);
  expect(await run('model', 'remove', 'tiny')).toMatchObject({ code: 1, stderr: expect.stringContaining('model tiny is in use: it is set for the fleet') });
  expect((await run('model', 'auto', '--all')).code).toBe(0);
  expect((await run('model', 'remove', 'tiny')).code).toBe(0);
});

test.each([[['--bandwidth', '1'], /at least 8192/], [['--bandwidth', 'fast'], /2MB\/s/], [['--quiet-hours', '8-18'], /08:00-18:00/]])('set %j is refused before anybody is asked', async (flags, why) => {
  expect(await run('model', 'set', 'tiny', '--all', ...flags)).toMatchObject({ code: 2, stderr: expect.stringMatching(why) });
});
