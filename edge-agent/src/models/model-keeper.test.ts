import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceSpec, type ModelFile, SpecState } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { DesiredApplier } from '../control/desired-applier';
import { SpecStore } from '../control/spec-store';
import { StateFolder } from '../control/state-folder';
import { generate, HOST_PATH, REFERENCE_MODEL, stateOf, testHost } from '../control/testing/test-host';
import { packModel, quantizeModel } from '../engine';
import type { EngineHostClient } from '../host/host-client';
import { checkModelApart } from '../host/model-check';
import { CoordinatorBlobs } from './coordinator-blobs';
import { FetchAllowance } from './fetch-allowance';
import { Holdings } from './holdings';
import { ModelKeeper } from './model-keeper';
import { ModelsFolder } from './models-folder';
import { BlobSite, chunksOf, modelOf, type TestModel } from './testing/blob-site';

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

async function boot(modelPath = REFERENCE_MODEL): Promise<void> {
  applier = new DesiredApplier(new SpecStore(new StateFolder(path), log), { maxCacheBytes: 7e6, maxLambda: 1, traceRatio: 1 }, log);
  applier.restore();
  host = testHost({ modelPath, lastGoodModelPath: modelPath === REFERENCE_MODEL ? null : REFERENCE_MODEL, specFor: (model) => applier.specFor(model) });
  applier.follow(host);
  folder = new ModelsFolder(join(path, 'models'));
  const allowance = new FetchAllowance({ bytesPerSecond: null, quietHours: null }, () => performance.now(), () => new Date());
  const client = site.client();
  keeper = new ModelKeeper({
    folder, allowance, host, log, holdings: new Holdings(folder), exchange: null, setUpPath: REFERENCE_MODEL,
    coordinator: new CoordinatorBlobs({ client: () => client, allowance, log }),
    load: (file) => host.load(file),
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

function ask(generation: bigint, model?: ModelFile): void {
  applier.receive({ generation, bytes: Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial({ lambda: 0.2, model })).finish()), origin: 'test' });
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
