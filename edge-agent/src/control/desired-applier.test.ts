import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceSpec, Reported, SpecState } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import type { EngineHostClient } from '../host/host-client';
import { DesiredApplier } from './desired-applier';
import type { Limits } from './effective-spec';
import { specHash, type SpecRecord, SpecStore } from './spec-store';
import { StateFolder } from './state-folder';
import { generate, stateOf, testHost } from './testing/test-host';
import { until } from '../../../test/harness/ports';

const log = createLogger('test', 'silent');
const limits: Limits = { maxCacheBytes: 7.2 * 1024 ** 2, maxLambda: 0.8, traceRatio: 1 };
let path: string;
let host: EngineHostClient;
let applier: DesiredApplier;
let reports: Reported[];

beforeEach(() => { path = mkdtempSync(join(tmpdir(), 'moefleet-applier-')); });
afterEach(async () => {
  await host?.stop();
  rmSync(path, { recursive: true, force: true });
});

/** An agent's applier with its host, as after a start of the agent. */
async function boot(): Promise<void> {
  const mine = new DesiredApplier(new SpecStore(new StateFolder(path), log), limits, log);
  mine.restore();
  host = testHost({ specFor: (model) => mine.specFor(model) });
  mine.follow(host);
  reports = [];
  mine.onReport(() => reports.push(mine.reported));
  applier = mine;
  await host.start();
  await stateOf(host, 'ready');
  await until('a spec is in force', () => mine.inForce);
}

function record(generation: bigint, spec: Partial<DeviceSpec>): SpecRecord {
  return { generation, bytes: Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial(spec)).finish()), origin: 'test' };
}

const reached = (state: SpecState, generation: bigint): Promise<unknown> =>
  until(`${SpecState[state]} of generation ${generation}`, () => applier.reported.state === state && applier.reported.generation === generation);

async function crash(): Promise<void> {
  const starts = host.starts;
  process.kill(host.pid!, 'SIGABRT');
  await until('the next start', () => host.starts > starts);
  await stateOf(host, 'ready');
}

test('a spec is applied, reported with its hash and what it came to, and in force again after a crash', async () => {
  await boot();
  expect(applier.reported).toMatchObject({ appliedGeneration: 0n, effective: { lambda: 0, topJ: 2 } });
  const desired = record(4n, { lambda: 0.9, topJ: 1, cache: { $case: 'cacheBytes', value: 4_000_000n } });
  applier.receive(desired);
  await reached(SpecState.SPEC_STATE_APPLIED, 4n);
  expect(reports.map(({ state }) => state)).toContain(SpecState.SPEC_STATE_APPLYING);
  expect(applier.reported).toMatchObject({ appliedGeneration: 4n, appliedHash: specHash(desired.bytes), effective: { lambda: 0.8, topJ: 1 } });
  expect(applier.reported.adjustments).toHaveLength(1);
  await generate(host, 8);
  await crash();
  let generation = 0;
  let lambda = 0;
  await generate(host, 16, ({ missEvents }) => {
    if (missEvents.length === 0) return;
    lambda = missEvents[11]!;
    generation = missEvents[12]!;
  });
  expect({ generation, lambda }).toEqual({ generation: 4, lambda: 0.8 });
});

test('lambda takes effect within a generation that runs already', async () => {
  await boot();
  const lambdas = new Set<number>();
  await generate(host, 200, ({ step, missEvents }) => {
    if (step === 3) applier.receive(record(1n, { lambda: 0.5 }));
    for (let at = 11; at < missEvents.length; at += 14) lambdas.add(missEvents[at]!);
  });
  expect([...lambdas]).toEqual([0, 0.5]);
});

test('only the latest counts, an older one is only answered', async () => {
  await boot();
  for (let n = 1n; n <= 20n; n += 1n) applier.receive(record(n, { lambda: Number(n) / 100 }));
  applier.receive(record(7n, { lambda: 0.7 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 20n);
  await applier.idle();
  expect(applier.reported).toMatchObject({ appliedGeneration: 20n, effective: { lambda: 0.2 } });
});

test.each([
  ['bytes that are no spec', { generation: 5n, bytes: Buffer.from([255, 255, 255]), origin: '' }, /decoded/],
  ['a lambda outside [0,1]', record(5n, { lambda: 1.5 }), /lambda: 1.5/],
])('%s fail with the reason and leave what runs in force', async (_, bad, says) => {
  await boot();
  applier.receive(record(4n, { lambda: 0.3 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 4n);
  applier.receive(bad);
  await reached(SpecState.SPEC_STATE_FAILED, 5n);
  expect(applier.reported.reason).toMatch(says);
  expect(applier.reported).toMatchObject({ appliedGeneration: 4n, effective: { lambda: 0.3 } });
  applier.receive(record(6n, { lambda: 0.4 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 6n);
});

test('after a restart the last applied spec runs before anybody has sent it', async () => {
  await boot();
  applier.receive(record(9n, { lambda: 0.35 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 9n);
  await host.stop();
  await boot();
  await reached(SpecState.SPEC_STATE_APPLIED, 9n);
  expect(applier.inForce!.effective.routing).toMatchObject({ lambda: 0.35, generation: 9 });
});

test('while memory is short the engine holds less and the report says so; then the spec is in force as it was', async () => {
  await boot();
  applier.receive(record(3n, { lambda: 0.3 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 3n);
  await generate(host, 24);
  const { residentBytes } = (await host.memory())!;
  const whole = applier.reported.effective!;
  await applier.limitCache({ bytes: 3_000_000, reason: 'others need it' });
  const held = (await host.memory())!; // before the spec that follows has been applied
  expect(held.residentBytes).toBeLessThanOrEqual(3_000_000);
  expect(residentBytes).toBeGreaterThan(3_000_000);
  await applier.idle();
  expect(applier.reported).toMatchObject({
    state: SpecState.SPEC_STATE_APPLIED, appliedGeneration: 3n, effective: { lambda: 0.3 },
    adjustments: [{ field: 'cache_bytes', asked: String(whole.cacheBytes), reason: 'memory is short: others need it' }],
  });
  expect(applier.reported.effective!.cacheBytes).toBeLessThanOrEqual(3_000_000n);
  expect((await host.counters())!.layers.reduce((sum, layer) => sum + layer.pressureEvictions, 0)).toBeGreaterThan(0);
  await crash(); // a new engine is opened with no more than there is room for
  expect((await host.memory())!.cacheBytes).toBeLessThanOrEqual(3_000_000);
  await applier.limitCache(null);
  await applier.idle();
  expect(applier.reported).toMatchObject({ effective: { capacities: whole.capacities }, adjustments: [] });
});

test('two crashes under a spec that has served no token go back to the last that has', async () => {
  await boot();
  applier.receive(record(1n, { lambda: 0.1 }));
  await reached(SpecState.SPEC_STATE_APPLIED, 1n);
  await generate(host, 8);
  const bad = record(2n, { lambda: 0.2 });
  applier.receive(bad);
  await reached(SpecState.SPEC_STATE_APPLIED, 2n);
  await crash();
  expect(applier.reported.generation).toBe(2n);
  await crash();
  await until('the old one is in force', () => applier.inForce?.record.generation === 1n);
  expect(applier.reported).toMatchObject({ state: SpecState.SPEC_STATE_FAILED, generation: 2n, appliedGeneration: 1n, effective: { lambda: 0.1 } });
  expect(applier.reported.reason).toMatch(/crashed twice.*SIGABRT.*generation 1/);
  // The coordinator sends it again, as it sees the hashes differ: refused, until a new generation asks.
  applier.receive(bad);
  await applier.idle();
  expect(applier.inForce!.record.generation).toBe(1n);
  await host.stop();
  await boot();
  expect(applier.inForce!.record.generation).toBe(1n);
  applier.receive({ ...bad, generation: 3n });
  await reached(SpecState.SPEC_STATE_APPLIED, 3n);
});
