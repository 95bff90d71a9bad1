import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceSpec, type ModelFile, Routing, SpecState } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { DesiredApplier } from '../control/desired-applier';
import { ModelSwitch } from '../control/model-switch';
import { SpecStore } from '../control/spec-store';
import { StateFolder } from '../control/state-folder';
import { generate, HOST_PATH, REFERENCE_MODEL, stateOf, testHost } from '../control/testing/test-host';
import { writeAbortingModel } from '../control/testing/aborting-model';
import { writeNanModel } from '../control/testing/nan-model';
import { MISS_EVENT, MISS_EVENT_FIELDS, packModel, quantizeModel, widenModel } from '../engine';
import type { EngineQueue } from '../engine-queue';
import type { EngineHostClient } from '../host/host-client';
import { checkModelApart } from '../host/model-check';
import { CoordinatorBlobs } from './coordinator-blobs';
import { FetchAllowance } from './fetch-allowance';
import { Holdings } from './holdings';
import { ModelKeeper } from './model-keeper';
import { ModelsFolder } from './models-folder';
import { BlobSite, chunksOf, modelOf, sha256, type TestModel } from './testing/blob-site';

const log = createLogger('test', 'silent');
const CHUNK = 1024 ** 2;
let files: string;
let packed: TestModel;
let smaller: TestModel;
let path: string;
let site: BlobSite;
let host: EngineHostClient;
let applier: DesiredApplier;
let keeper: ModelKeeper;
let folder: ModelsFolder;

const inChunks = (file: Buffer): TestModel => modelOf(Array.from({ length: Math.ceil(file.length / CHUNK) }, (_, i) => file.subarray(i * CHUNK, (i + 1) * CHUNK)));

beforeAll(async () => {
  files = mkdtempSync(join(tmpdir(), 'moefleet-keeper-files-'));
  await packModel(REFERENCE_MODEL, join(files, 'packed.gguf'));
  await quantizeModel(join(files, 'packed.gguf'), join(files, 'smaller.gguf'), { type: 'q4_0', downType: 'q4_0', requantize: true, threads: 0, replace: false });
  packed = inChunks(readFileSync(join(files, 'packed.gguf')));
  smaller = inChunks(readFileSync(join(files, 'smaller.gguf')));
});
afterAll(() => rmSync(files, { recursive: true, force: true }));
beforeEach(() => { path = mkdtempSync(join(tmpdir(), 'moefleet-keeper-')); });
afterEach(async () => {
  await halt();
  await site.stop();
  rmSync(path, { recursive: true, force: true });
});

async function boot(modelPath = REFERENCE_MODEL, maxCacheBytes = 7e6): Promise<void> {
  applier = new DesiredApplier(new SpecStore(new StateFolder(path), log), { maxCacheBytes, maxLambda: 1, traceRatio: 1 }, log);
  applier.restore();
  host = testHost({ modelPath, lastGoodModelPath: modelPath === REFERENCE_MODEL ? null : REFERENCE_MODEL, specFor: (model) => applier.specFor(model) });
  applier.follow(host);
  folder = new ModelsFolder(join(path, 'models'));
  const allowance = new FetchAllowance({ bytesPerSecond: null, quietHours: null }, () => performance.now(), () => new Date());
  const client = site.client();
  const alone = { exclusive: (work: (signal: AbortSignal) => Promise<unknown>, signal: AbortSignal) => work(signal) } as unknown as EngineQueue;
  const trial = new ModelSwitch(host, alone, (model) => applier.specFor(model));
  keeper = new ModelKeeper({
    folder, allowance, host, log, holdings: new Holdings(folder), exchange: null, setUpPath: REFERENCE_MODEL,
    coordinator: new CoordinatorBlobs({ client: () => client, allowance, log, backoff: { baseMs: 20, maxMs: 200 } }),
    load: (file) => trial.load(file),
    check: (file, signal) => checkModelApart(HOST_PATH, process.env, file, signal),
  });
  applier.keepModels(keeper);
  await host.start();
  await keeper.start();
  await stateOf(host, 'ready');
}

async function halt(): Promise<void> {
  await keeper.stop();
  await host.stop();
}

const fileOf = (name: string, { manifest }: TestModel): ModelFile => ({ name, manifestSha256: manifest.id, bytes: BigInt(manifest.bytes), quietHours: '' });

function ask(generation: bigint, model?: ModelFile, over: Partial<DeviceSpec> = {}): void {
  applier.receive({ generation, bytes: Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial({ lambda: 0.2, model, ...over })).finish()), origin: 'test' });
}

const reached = (state: SpecState, generation: bigint): Promise<unknown> =>
  until(`${SpecState[state]} of generation ${generation}`, () => applier.reported.state === state && applier.reported.generation === generation);

const loaded = (): string | null => (host.state.t === 'ready' ? host.state.model.info.path : null);
const kept = (): string[] => (existsSync(folder.path) ? readdirSync(folder.path).filter((name) => name.endsWith('.gguf')) : []);

test('the model of the spec comes while the one before serves; what came before goes when the next has served, and without one the device\'s own is back', async () => {
  site = await BlobSite.start(packed, smaller);
  await boot();
  const told: bigint[] = [];
  keeper.onProgress(() => told.push(keeper.fetch?.bytesDone ?? -1n));
  ask(1n, fileOf('first', packed));
  await until('it is on its way', () => keeper.fetch);
  expect(applier.reported.state).toBe(SpecState.SPEC_STATE_APPLYING);
  expect(loaded()).toBe(REFERENCE_MODEL);
  await reached(SpecState.SPEC_STATE_APPLIED, 1n);
  expect(loaded()).toBe(folder.modelPath(packed.manifest.id));
  expect(keeper.fetch).toBeUndefined();
  await generate(host, 4);
  ask(2n, fileOf('second', smaller));
  await reached(SpecState.SPEC_STATE_APPLIED, 2n);
  expect(kept().sort()).toEqual([`${packed.manifest.id}.gguf`, `${smaller.manifest.id}.gguf`].sort());
  // A restart runs what the last good spec names.
  await halt();
  await boot(folder.modelPath(smaller.manifest.id));
  await reached(SpecState.SPEC_STATE_APPLIED, 2n);
  await generate(host, 4);
  await until('the first is gone', () => kept().length === 1);
  expect(loaded()).toBe(folder.modelPath(smaller.manifest.id));
  await expect(keeper.loadOwn(REFERENCE_MODEL)).rejects.toThrow('the fleet has this device run the model second');
  ask(3n);
  await reached(SpecState.SPEC_STATE_APPLIED, 3n);
  expect(loaded()).toBe(REFERENCE_MODEL);
  await generate(host, 4);
  await until('nothing is kept', () => kept().length === 0);
});

test('what is no model, is damaged below its chunks or cannot be had fails with the reason, and the one before serves on', async () => {
  const rubbish = modelOf(chunksOf(2, 50_000));
  const file = Buffer.from(packed.file);
  file.writeUInt8(file.readUInt8(file.length - 5_000_000) ^ 1, file.length - 5_000_000);
  const damaged = inChunks(file);
  site = await BlobSite.start(rubbish, damaged);
  await boot();
  ask(1n, fileOf('rubbish', rubbish));
  await reached(SpecState.SPEC_STATE_FAILED, 1n);
  expect(applier.reported.reason).toMatch(/^model rubbish: /);
  ask(2n, fileOf('damaged', damaged));
  await reached(SpecState.SPEC_STATE_FAILED, 2n);
  expect(applier.reported.reason).toMatch(/^model damaged: 1 parts are not what their checksums say, the first is blk\./);
  ask(3n, { ...fileOf('endless', rubbish), bytes: 2n ** 52n });
  await reached(SpecState.SPEC_STATE_FAILED, 3n);
  expect(applier.reported.reason).toMatch(/^model endless: .* are needed and .* free/);
  ask(4n, { ...fileOf('odd', rubbish), manifestSha256: '../etc' });
  await reached(SpecState.SPEC_STATE_FAILED, 4n);
  expect(loaded()).toBe(REFERENCE_MODEL);
  expect(readdirSync(folder.path).filter((name) => name.includes('.gguf'))).toEqual([]);
  await generate(host, 4);
});

test('one that takes down the engine, computes no numbers or needs more memory than the device gives is refused with the reason, and the one before is back by itself', async () => {
  const paths = ['aborting', 'nan', 'wide'].map((name) => join(files, `${name}.gguf`)) as [string, string, string];
  writeAbortingModel(REFERENCE_MODEL, join(files, 'aborting-unpacked.gguf'));
  await packModel(join(files, 'aborting-unpacked.gguf'), paths[0]);
  await writeNanModel(REFERENCE_MODEL, join(files, 'nan-unpacked.gguf'));
  await packModel(join(files, 'nan-unpacked.gguf'), paths[1]);
  await widenModel(REFERENCE_MODEL, paths[2], { width: 160 });
  const [aborting, nan, wide] = paths.map((file) => inChunks(readFileSync(file))) as [TestModel, TestModel, TestModel];
  site = await BlobSite.start(aborting, nan, wide);
  await boot(REFERENCE_MODEL, 2e6);
  const refusals: [TestModel, RegExp][] = [
    [aborting, /GGML_ASSERT/], [nan, /what it computes are no numbers/], [wide, /one token touches 2\d+ bytes of experts .* --max-cache allows 2000000/],
  ];
  for (const [at, [model, reason]] of refusals.entries()) {
    ask(BigInt(at + 1), fileOf('bad', model));
    await reached(SpecState.SPEC_STATE_FAILED, BigInt(at + 1));
    expect(applier.reported.reason).toMatch(/^model bad: /);
    expect(applier.reported.reason).toMatch(reason);
    await stateOf(host, 'ready');
    expect(loaded()).toBe(REFERENCE_MODEL);
    await generate(host, 4);
  }
  await until('nothing of them is kept', () => kept().length === 0);
}, 60_000);

test('one that takes down the engine later, twice before its first token, is refused too', async () => {
  site = await BlobSite.start(smaller);
  await boot();
  ask(1n, fileOf('brittle', smaller));
  await reached(SpecState.SPEC_STATE_APPLIED, 1n);
  for (let crash = 1; crash <= 2; crash += 1) {
    const { starts } = host;
    process.kill(host.pid!, 'SIGABRT');
    await until('the next start', () => host.starts > starts);
    await stateOf(host, 'ready');
  }
  await reached(SpecState.SPEC_STATE_FAILED, 1n);
  expect(applier.reported.reason).toMatch(/^model brittle: .*SIGABRT.*went back to/);
  expect(loaded()).toBe(REFERENCE_MODEL);
});

test('while a model comes whose λ the spec has already, the one before keeps its own, restarted too; the kill switch holds at once, and the newcomer runs at 0 with another\'s', async () => {
  site = await BlobSite.start(packed);
  await boot();
  const { hash } = (await stateOf(host, 'ready')).model;
  const lambdas = async (): Promise<Set<number>> => {
    const seen = new Set<number>();
    await generate(host, 24, ({ missEvents }) => { for (let at = 0; at < missEvents.length; at += MISS_EVENT_FIELDS) seen.add(missEvents[at + MISS_EVENT.lambda]!); }, { coldCache: true });
    return seen;
  };
  ask(1n, undefined, { modelHash: hash, lambda: 0.4 });
  await reached(SpecState.SPEC_STATE_APPLIED, 1n);
  site.fault = (_, response) => (response.writeHead(503, { 'retry-after': '0' }).end(), true);
  ask(2n, fileOf('first', packed), { modelHash: 'cd'.repeat(32), lambda: 0.9 });
  await until('it is on its way', () => keeper.fetch);
  await applier.idle();
  expect(await lambdas()).toEqual(new Set([0.4]));
  process.kill(host.pid!, 'SIGKILL');
  await until('the host is gone', () => host.state.t !== 'ready');
  await stateOf(host, 'ready');
  expect(await lambdas()).toEqual(new Set([0.4]));
  ask(3n, fileOf('first', packed), { routing: Routing.ROUTING_ORIGINAL, lambda: 0 });
  await applier.idle();
  expect(await lambdas()).toEqual(new Set([0]));
  ask(4n, fileOf('first', packed), { modelHash: hash, lambda: 0.4 });
  await applier.idle();
  expect(await lambdas()).toEqual(new Set([0.4]));
  site.fault = () => false;
  await reached(SpecState.SPEC_STATE_APPLIED, 4n);
  expect([loaded(), await lambdas()]).toEqual([folder.modelPath(packed.manifest.id), new Set([0])]);
});

test('what has come of a model that failed stays for the next try, for a week, and goes when the spec names another', async () => {
  site = await BlobSite.start(packed);
  await boot();
  const parts = () => readdirSync(folder.path).filter((name) => name.endsWith('.part') || name.endsWith('.manifest'));
  const gone = sha256(packed.chunks.at(-1)!);
  site.fault = (sha, response) => sha === gone && (response.writeHead(404).end(), true);
  ask(1n, fileOf('first', packed));
  await reached(SpecState.SPEC_STATE_FAILED, 1n);
  expect(applier.reported.reason).toMatch(/^model first: the coordinator does not keep .* any more/);
  expect(parts()).toHaveLength(2);
  const before = site.bytesSent;
  ask(2n, fileOf('first', packed));
  await reached(SpecState.SPEC_STATE_FAILED, 2n);
  expect(site.bytesSent - before).toBeLessThan(packed.file.length / 2);
  await halt();
  await boot();
  ask(2n, fileOf('first', packed));
  await reached(SpecState.SPEC_STATE_FAILED, 2n);
  expect([site.bytesSent - before < packed.file.length / 2, parts().length]).toEqual([true, 2]);
  ask(3n);
  await reached(SpecState.SPEC_STATE_APPLIED, 3n);
  await until('nothing is kept', () => parts().length === 0);
});
