/** What can happen to a model's file, or to the disk below it, while an agent runs it. */
import { execFileSync } from 'node:child_process';
import { closeSync, copyFileSync, mkdtempSync, openSync, readSync, renameSync, rmSync, truncateSync, utimesSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspectModel, packModel } from '../../edge-agent/src/engine';
import type { RunningAgent } from '../../services/demo/src/local-fleet';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';
import { complete, TestFleet } from '../harness/test-fleet';

const DISK = join(__dirname, '..', 'harness', 'failing-disk.c');

/** Neither size nor time shall tell of a change below the file system. */
const PACKED_AT = new Date('2001-09-09T01:46:40Z');

let folder: string;
let fleet: TestFleet;
/** says how the disk fails, while it is there */
let verdict: string;
/** an agent whose cache is too small to do without reads, and its own copy of the model */
let agent: RunningAgent;
let model: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-model-file-'));
  const disk = join(folder, 'failing-disk.so');
  verdict = join(folder, 'verdict');
  execFileSync('gcc', ['-shared', '-fPIC', '-O1', '-o', disk, DISK, '-ldl']);
  fleet = await new TestFleet({ LD_PRELOAD: disk, MOEFLEET_TEST_DISK: verdict }).start();
  model = join(folder, 'model.gguf');
  copyFileSync(MODEL, model);
  agent = await fleet.agent('phone-1', { maxCache: '3.6MiB', model });
  await fleet.online('phone-1');
});
afterAll(async () => {
  await fleet?.stop();
  rmSync(folder, { recursive: true, force: true });
});

afterEach(() => rmSync(verdict, { force: true }));

const cold = (tokens = 8) => complete(agent.httpUrl, { tokens, cold: true });
const heard = (id: string, status: string, message: RegExp) => until(`the coordinator hears ${String(message)}`, async () => {
  const { info, online } = await fleet.device(id);
  return online && info?.model.status === status && message.test(info.model.message);
});
async function loadAgain(path = model): Promise<void> {
  const response = await fetch(`${agent.httpUrl}/moefleet/v1/model`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ path }),
  });
  if (!response.ok) throw new Error(await response.text());
}

test('reads that come back short change nothing', async () => {
  const { text } = await cold();
  writeFileSync(verdict, 'short');
  expect((await cold()).text).toBe(text);
  rmSync(verdict);
});

test.each([
  ['error', /blk\.\d+\.ffn_(gate|up|down)_exps\.weight: reading .* failed: Input\/output error/],
  ['end', /blk\.\d+\.ffn_(gate|up|down)_exps\.weight: reading .* failed: the file ended early/],
])('a disk that answers with an %s fails the request with the reason, the coordinator hears it, and the engine serves on', async (how, reason) => {
  const { text } = await cold();
  const { hostCrashes } = (await fleet.device('phone-1')).info!.model;
  writeFileSync(verdict, how);
  await expect(cold()).rejects.toThrow(reason);
  await heard('phone-1', 'READY', reason);
  rmSync(verdict);
  expect((await cold()).text).toBe(text);
  expect((await fleet.device('phone-1')).info!.model.hostCrashes).toBe(hostCrashes);
});

test.each<[string, () => void, RegExp]>([
  ['truncated', () => truncateSync(model, 9_000_000), /changed while in use \(size 18395232 to 9000000\); load it again/],
  ['replaced', () => { copyFileSync(MODEL, `${model}.new`); renameSync(`${model}.new`, model); }, /replaced by another file while in use; load it again/],
  ['removed', () => rmSync(model), /removed while in use; load it again/],
])('a file that is %s fails the request and the model, not the agent, until it is loaded again', async (_, change, reason) => {
  const { text } = await cold();
  change();
  await expect(complete(agent.httpUrl, { tokens: 8 })).rejects.toThrow(reason);
  await heard('phone-1', 'FAILED', reason);
  expect(agent.child.ended).toBe(false);
  await expect(cold()).rejects.toThrow(reason);
  copyFileSync(MODEL, model);
  await loadAgain();
  expect((await cold()).text).toBe(text);
  await until('the coordinator hears that it is loaded', async () => (await fleet.device('phone-1')).info!.model.status === 'READY');
});

test('with --verify, a byte that changed on the disk is found before it is used', async () => {
  const packed = join(folder, 'packed.gguf');
  await packModel(MODEL, packed);
  utimesSync(packed, PACKED_AT, PACKED_AT);
  const careful = await fleet.agent('phone-2', { maxCache: '3.6MiB', model: packed, flags: ['--verify'] });
  await fleet.online('phone-2');
  const { text } = await complete(careful.httpUrl, { tokens: 8, cold: true });
  expect(text).toBe((await cold()).text);

  const info = await inspectModel(packed);
  const { offset, bytes } = info.tensors.find(({ name }) => name === 'blk.2.ffn_up_exps.weight')!;
  const flipAll = () => {
    const file = openSync(packed, 'r+');
    const byte = Buffer.alloc(1);
    for (let at = offset + 99; at < offset + bytes; at += bytes / info.experts) {
      readSync(file, byte, 0, 1, at);
      byte[0]! ^= 8;
      writeSync(file, byte, 0, 1, at);
    }
    closeSync(file);
    utimesSync(packed, PACKED_AT, PACKED_AT);
  };
  flipAll();
  const reason = /blk\.2 expert \d+: checksum mismatch in .*packed\.gguf/;
  await expect(complete(careful.httpUrl, { tokens: 8, cold: true })).rejects.toThrow(reason);
  await heard('phone-2', 'READY', reason);
  flipAll();
  expect((await complete(careful.httpUrl, { tokens: 8, cold: true })).text).toBe(text);

  const plain = await fleet.fleet.startAgent({ id: 'phone-3', model: MODEL, maxCache: '3.6MiB', flags: ['--verify'] });
  await until('an unpacked model is refused', async () => /no checksums to verify/.test((await (await fetch(`${plain.httpUrl}/healthz`)).json() as { reason: string }).reason));
});
