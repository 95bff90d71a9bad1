/** Warm starts with the real engine: from a list, from the disk, after growth and a crash; and reports of what was used. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceSpec, WarmList } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import type { EngineHostClient } from '../host/host-client';
import type { WarmResult } from '../native';
import { DesiredApplier } from './desired-applier';
import { ExpertUseReports } from './expert-use';
import { SpecStore } from './spec-store';
import { StateFolder } from './state-folder';
import { generate, stateOf, testHost } from './testing/test-host';
import { WarmStart } from './warm-start';
import { until } from '../../../test/harness/ports';

const LAYERS = 6;
const log = createLogger('test', 'silent');
let path: string;
let host: EngineHostClient;
let applier: DesiredApplier;
let warm: WarmStart;

beforeEach(() => { path = mkdtempSync(join(tmpdir(), 'moefleet-warm-')); });
afterEach(async () => {
  await host.stop();
  await warm.idle();
  rmSync(path, { recursive: true, force: true });
});

async function boot(): Promise<void> {
  const folder = new StateFolder(path);
  applier = new DesiredApplier(new SpecStore(folder, log), { maxCacheBytes: 64 * 1024 ** 2, maxLambda: 1, traceRatio: 1 }, log);
  host = testHost({ specFor: (model) => applier.specFor(model) });
  applier.follow(host);
  warm = new WarmStart({ host, applier, folder, log, now: () => performance.now() });
  warm.follow();
  await host.start();
  await stateOf(host, 'ready');
  await until('a spec is in force', () => applier.inForce);
}

const modelHash = () => (host.state.t === 'ready' ? host.state.model.hash : '');
const list = (experts: number[], over: Partial<WarmList> = {}): WarmList => ({ modelHash: modelHash(), workload: 'code', reports: 3, layers: Array.from({ length: LAYERS }, () => ({ experts })), ...over });
const residents = async () => (await host.counters())!.layers.map((layer) => layer.resident);
const capacity = (count: number, generation: bigint) =>
  applier.receive({ generation, origin: '', bytes: Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial({ cache: { $case: 'capacities', value: { experts: Array<number>(LAYERS).fill(count) } } })).finish()) });

test('fills the room from a list, counts it as neither hits nor misses, and starts warm again from the disk', async () => {
  await boot();
  capacity(6, 1n);
  await until('capacity 6', () => applier.inForce?.effective.routing.capacities[0] === 6);
  warm.receive(list([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
  await until('the cache is full', async () => (await residents()).every((count) => count === 6));
  const counters = (await host.counters())!;
  expect(counters.layers.map(({ warmFills, hits, misses }) => [warmFills, hits, misses])).toEqual(Array(LAYERS).fill([6, 0, 0]));
  expect(counters).toMatchObject({ missesTotal: 0, flashBytes: 0 });
  expect(counters.warmBytes).toBeGreaterThan(0);
  await warm.idle();

  capacity(9, 2n);
  await until('the cache has grown and is full', async () => (await residents()).every((count) => count === 9));
  process.kill(host.pid!, 'SIGABRT');
  await until('another start', () => host.starts === 2);
  await stateOf(host, 'ready');
  await until('it is full after a crash', async () => (await residents()).every((count) => count === 9));
  await host.stop();
  await warm.idle();
  await boot();
  await until('it is full after a restart', async () => (await residents()).every((count) => count === 10));
});

test('a list that makes no sense changes nothing, nor does a damaged file, and the engine goes on', async () => {
  writeFileSync(join(path, 'warm-list.json'), '{"layers": "none"');
  await boot();
  warm.receive(list([1, 1]));
  warm.receive(list([99]));
  warm.receive(list([1], { layers: [] }));
  warm.receive(list([5], { modelHash: 'cd'.repeat(32) }));
  await warm.idle();
  expect(await residents()).toEqual(Array(LAYERS).fill(0));
  expect((await generate(host, 4)).completionTokens).toBe(4);
  // What cannot be used is not kept in place of what can; a list for a model not loaded is.
  expect(JSON.parse(readFileSync(join(path, 'warm-list.json'), 'utf8'))).toMatchObject({ modelHash: 'cd'.repeat(32) });
});

test('is idle when every fill has ended, not only the latest', async () => {
  await boot();
  let end: (result: WarmResult) => void = () => {};
  const slow = new WarmStart({
    host: { get state() { return host.state; }, onStateChange: (listener) => host.onStateChange(listener), warm: () => new Promise((resolve) => { end = resolve; }) },
    applier, folder: new StateFolder(path), log, now: () => performance.now(),
  });
  slow.receive(list([1]));
  slow.receive(list([1], { modelHash: 'cd'.repeat(32) }));
  let idle = false;
  const ended = slow.idle().then(() => { idle = true; });
  await new Promise((resolve) => setImmediate(resolve));
  expect(idle).toBe(false);
  end({ done: true, experts: 0, bytes: 0, failures: 0, lastFailure: '' });
  await ended;
});

test('reports what tokens wanted since the report before, in whole tokens', async () => {
  await boot();
  const reports = new ExpertUseReports({ host, send: () => {}, log });
  await generate(host, 4);
  expect(await reports.take()).toBeNull();
  await generate(host, 30);
  const report = (await reports.take())!;
  // Of each generation the last token is not decoded.
  expect(report).toMatchObject({ sequence: 1n, modelHash: modelHash(), experts: 32, tokens: 32n });
  for (const { wanted, chosen } of report.layers) {
    expect(wanted.reduce((sum, count) => sum + count, 0)).toBe(32 * 4);
    expect(chosen).toEqual([]);
  }
  expect(await reports.take()).toBeNull();
  process.kill(host.pid!, 'SIGABRT');
  await until('another start', () => host.starts === 2);
  await stateOf(host, 'ready');
  await generate(host, 21);
  expect(await reports.take()).toMatchObject({ sequence: 2n, tokens: 20n });
});
