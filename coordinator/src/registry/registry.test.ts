/** The datastore contract, on a plain Redis and on a node of a Redis Cluster (which refuses keys without hash tags). */
import { DeviceInfo, DeviceSpec, Proposal, QualitySurface, Reported, RouterWindow, SpecState, TelemetryFrame } from '@moefleet/proto';
import { createLogger, parseSelector } from '@moefleet/runtime';
import { Redis } from 'ioredis';
import { until } from '../../../test/harness/ports';
import { startRedis } from '../../../test/harness/redis';
import { RegistryDataError, RegistryUnavailableError } from '../errors';
import { startClusterRedis } from '../testing/cluster-redis';
import { testInfo } from '../testing/test-agent';
import { randomPrefix } from '../testing/test-coordinator';
import { specHash } from './device-record';
import type { Lease } from './device-store';
import { RedisLink } from './redis-link';
import { Registry } from './registry';
import type { RolloutRecord } from './rollout-record';

const log = createLogger('test', 'silent');
const spec = (lambda: number) => Buffer.from(DeviceSpec.encode({ ...DeviceSpec.decode(new Uint8Array()), lambda }).finish());
const request = { installId: 'install', bootId: 'boot', coordinatorId: 'a', hostname: 'host', ttlMs: 10_000 };

describe.each([
  ['a plain Redis', startRedis, false],
  ['a Redis Cluster', startClusterRedis, true],
] as const)('on %s', (_, startServer, cluster) => {
  let server: { url: string; close(): Promise<void> };
  let raw: Redis;
  let prefix: string;
  let link: RedisLink;
  let registry: Registry;

  beforeAll(async () => {
    server = await startServer();
    raw = new Redis(server.url);
  });
  afterAll(async () => {
    raw.disconnect();
    await server.close();
  });
  beforeEach(async () => {
    prefix = randomPrefix();
    [link, registry] = open('a');
    await link.start();
  });
  afterEach(() => link.stop());

  function open(coordinatorId: string): [RedisLink, Registry] {
    const opened = new RedisLink({ url: server.url, cluster }, log);
    return [opened, new Registry(opened, { prefix, coordinatorId, windowBound: { windows: 3, bytes: 1000 }, mostRollouts: 3, mostAuditEntries: 1000 }, log)];
  }

  async function lease(id: string, change: Partial<typeof request> = {}): Promise<Lease> {
    const answer = await registry.devices.acquireLease(id, { ...request, ...change });
    if (answer.t !== 'granted') throw new Error('held');
    return answer.lease;
  }

  test('gives back what was stored about a device', async () => {
    const held = await lease('d');
    const info: DeviceInfo = testInfo({ id: 'd', labels: { class: 'phone' } });
    const reported: Reported = { ...Reported.decode(new Uint8Array()), state: SpecState.SPEC_STATE_APPLIED, generation: 4n, appliedHash: Buffer.alloc(32, 7) };
    const telemetry = { ...TelemetryFrame.decode(new Uint8Array()), sequence: 9n, flashBytes: 2n ** 50n };
    expect(await registry.devices.writeState(held, { info, reported, settledGeneration: 4n })).toEqual({ desiredGeneration: 0n });
    expect(await registry.telemetry.count([{ deviceId: 'd', bootId: 'boot', model: '', class: '', frame: telemetry }])).toEqual(['counted']);
    const record = (await registry.devices.read('d'))!;
    expect(record).toMatchObject({ info, reported, telemetry, settledGeneration: 4n, bootId: 'boot', damaged: [], desired: { t: 'none' }, lease: { coordinatorId: 'a', hostname: 'host' } });
    expect(await registry.devices.read('nobody')).toBeNull();
    expect((await registry.devices.readAll()).map((device) => device.id)).toEqual(['d']);
  });

  test('of many writers that have read the same desired, exactly one gets through', async () => {
    const results = await Promise.all(Array.from({ length: 20 }, (_unused, at) => registry.devices.writeDesired('d', 0n, 0n, spec(at / 100), `writer ${at}`)));
    const winners = results.filter((result) => result.t === 'written');
    expect(winners).toEqual([{ t: 'written', generation: 1n }]);
    const found = await registry.devices.readDesired('d');
    expect(found).toMatchObject({ t: 'set', generation: 1n, origin: `writer ${results.indexOf(winners[0]!)}` });
  });

  test('calls of one turn are each answered for themselves, also where one of them fails', async () => {
    const many = Array.from({ length: 300 }, (_unused, at) => `many-${at}`);
    const held = await Promise.all(many.map((id) => lease(id)));
    const origin = (id: string) => `λ of ${id}${id === 'many-8' ? ', '.padEnd(70_000, 'ä') : ''}`;
    await Promise.all(many.map((id, at) => registry.devices.writeDesired(id, 0n, 0n, spec(at / 1000), origin(id))));
    await raw.del(`${prefix}:{dev:many-7}:desired`);
    await raw.set(`${prefix}:{dev:many-7}:desired`, 'no hash');
    const read = await Promise.allSettled(many.map((id) => registry.devices.readDesired(id)));
    const written = await Promise.allSettled(held.map((each, at) => registry.devices.writeState(each, { settledGeneration: BigInt(at) })));
    for (const [at, id] of many.entries()) {
      if (at === 7) continue;
      expect(read[at]).toMatchObject({ status: 'fulfilled', value: { t: 'set', origin: origin(id), spec: spec(at / 1000) } });
      expect(written[at]).toEqual({ status: 'fulfilled', value: { desiredGeneration: 1n } });
    }
    for (const outcome of [read[7], written[7]]) expect(outcome).toMatchObject({ status: 'rejected', reason: expect.any(RegistryDataError) });
    expect(await raw.hget(`${prefix}:{dev:many-299}:state`, 'settledGeneration')).toBe('299');
  });

  test('generations count up by one, and jump above what a device has reported', async () => {
    expect(await registry.devices.writeDesired('d', 0n, 0n, spec(0.1), '')).toEqual({ t: 'written', generation: 1n });
    expect(await registry.devices.writeDesired('d', 1n, 0n, spec(0.2), '')).toEqual({ t: 'written', generation: 2n });
    expect(await registry.devices.writeDesired('d', 1n, 0n, spec(0.3), '')).toEqual({ t: 'stale' });
    expect(await registry.devices.writeDesired('d', 3n, 0n, spec(0.3), '')).toEqual({ t: 'stale' });
    expect(await registry.devices.writeDesired('d', 2n, 2n ** 52n, spec(0.4), '')).toEqual({ t: 'written', generation: 2n ** 52n + 1n });
  });

  test('a lease keeps other installations out until it is released or runs out', async () => {
    const first = await lease('d');
    expect(await registry.devices.acquireLease('d', { ...request, installId: 'other' })).toEqual({ t: 'held', installId: 'install', coordinatorId: 'a', hostname: 'host' });
    await registry.devices.releaseLease(first);
    const second = await lease('d', { installId: 'other', ttlMs: 50 });
    await until('the lease has run out', async () => (await registry.devices.acquireLease('d', request)).t === 'granted', 3000, 10);
    expect(await registry.devices.renewLease(second)).toBeNull();
  });

  test('a newer stream of the same installation fences the older one off', async () => {
    const older = await lease('d');
    const newer = await lease('d', { coordinatorId: 'b' });
    expect(newer.fence).toBeGreaterThan(older.fence);
    expect(await registry.devices.renewLease(older)).toBeNull();
    expect(await registry.devices.writeState(older, { settledGeneration: 99n })).toBeNull();
    await registry.devices.releaseLease(older);
    expect((await registry.devices.read('d'))).toMatchObject({ settledGeneration: 0n, lease: { coordinatorId: 'b' } });
    expect(await registry.devices.renewLease(newer)).toEqual({ desiredGeneration: 0n });
  });

  test('a lease survives a Redis that has lost everything', async () => {
    const held = await lease('d');
    await raw.flushall();
    expect(await registry.devices.renewLease(held)).toEqual({ desiredGeneration: 0n });
    expect(await registry.devices.acquireLease('d', { ...request, installId: 'other' })).toMatchObject({ t: 'held' });
    expect(await registry.devices.writeState(held, { info: testInfo({ id: 'd' }) })).not.toBeNull();
  });

  test('router windows stay within their number and their bytes, the oldest go first', async () => {
    const window = (windowId: string, bytes: number): RouterWindow => ({ ...RouterWindow.decode(new Uint8Array()), windowId, data: Buffer.alloc(bytes) });
    const dropped = [];
    for (const [id, bytes] of [['w1', 10], ['w2', 10], ['w3', 10], ['w4', 10], ['w5', 900], ['w6', 2000], ['w7', 10]] as const) {
      dropped.push(await registry.windows.push('d', window(id, bytes)));
    }
    expect(dropped).toEqual([0, 0, 0, 1, 1, 4, 0]);
    expect(await registry.windows.push('d', window('w7', 10))).toBe(0);
    const kept = await registry.windows.list('d');
    expect(kept.map((found) => found.window.windowId)).toEqual(['w7']);
    expect(await registry.windows.delete('d')).toEqual({ windows: 1, bytes: kept[0]!.bytes });
    expect(await registry.windows.list('d')).toEqual([]);
  });

  test('pins come back by place and field, newer ones with a higher order', async () => {
    const lambda = { why: 'test', modelHashes: ['ab'], lambda: 0.25, topJ: null };
    await registry.pins.set({ t: 'fleet' }, 'lambda', lambda);
    await registry.pins.set({ t: 'group', selector: 'a=b,c=d' }, 'sampling', { why: '', sampling: null });
    await registry.pins.set({ t: 'device', deviceId: 'd' }, 'cache', { why: '', modelHashes: [], size: { t: 'bytes', cacheBytes: 4096 } });
    await lease('d');
    const shared = await registry.pins.shared();
    expect(shared.fleet.lambda).toEqual({ ...lambda, order: 1 });
    expect(shared.groups).toEqual([{ selector: 'a=b,c=d', matches: parseSelector('a=b,c=d'), pins: { sampling: { order: 2, why: '', sampling: null } } }]);
    expect((await registry.devices.read('d'))!.pins.cache).toMatchObject({ order: 3, size: { t: 'bytes', cacheBytes: 4096 } });
    expect(await registry.pins.clear({ t: 'fleet' }, 'lambda')).toBe(true);
    expect(await registry.pins.clear({ t: 'fleet' }, 'lambda')).toBe(false);
  });

  test('the learner\'s value is kept per model, its last word whatever it was', async () => {
    const held = await lease('d');
    await registry.devices.writeState(held, { info: testInfo({ id: 'd', modelHash: 'aa'.repeat(32) }) });
    const value = { ...Proposal.decode(new Uint8Array()), deviceId: 'd', modelHash: 'aa'.repeat(32), lambda: 0.3, proposed: true };
    await registry.devices.putLearned(value);
    await registry.devices.putOutcome({ ...value, proposed: false, lambda: 0, reason: 'too few tokens' });
    await registry.devices.putRefused({ ...value, lambda: 0.9 });
    expect((await registry.devices.read('d'))!.refused).toMatchObject({ lambda: 0.9 });
    const newer = { ...value, lambda: 0.4 };
    await registry.devices.putLearned(newer);
    await registry.devices.restoreLearned(value, null);
    expect((await registry.devices.read('d'))!.learned).toMatchObject({ lambda: 0.4 });
    await registry.devices.restoreLearned(newer, value);
    expect(await registry.devices.read('d')).toMatchObject({ learned: { lambda: 0.3 }, lastProposal: { proposed: false, reason: 'too few tokens' } });
    await registry.devices.writeState(held, { info: testInfo({ id: 'd', modelHash: 'bb'.repeat(32) }) });
    expect((await registry.devices.read('d'))!.learned).toBeUndefined();
  });

  test('quality surfaces are found by model and text', async () => {
    const surface = { ...QualitySurface.decode(new Uint8Array()), modelHash: 'aabbccdd', textHash: '11223344', tokens: 512 };
    await registry.learner.putSurface(surface);
    expect(await registry.learner.getSurface('aabbccdd', '11223344')).toEqual(surface);
    expect(await registry.learner.getSurface('aabbccdd', '99999999')).toBeNull();
  });

  test('the oldest rollouts are forgotten', async () => {
    const rollout = (id: string, createdMs: number): RolloutRecord => ({ id, what: 'w', origin: 'o', createdMs, deadlineMs: 1, state: 'done', rows: [] });
    for (let at = 1; at <= 5; at += 1) await registry.rollouts.put(rollout(`r${at}`, at));
    await registry.rollouts.put({ ...rollout('r3', 3), state: 'incomplete' });
    expect(await registry.rollouts.get('r2')).toBeNull();
    expect(await registry.rollouts.get('r3')).toMatchObject({ state: 'incomplete' });
    expect(await registry.rollouts.get('r5')).toMatchObject({ what: 'w' });
  });

  test('wake-ups reach other coordinators, and come back to the sender once only', async () => {
    const [otherLink, other] = open('b');
    const [here, there]: string[][] = [[], []];
    registry.events.on((event) => here!.push(`${event.kind} ${event.deviceId}`));
    other.events.on((event) => there!.push(`${event.kind} ${event.deviceId}`));
    await otherLink.start();
    await until('the other one listens', async () => { registry.events.emit({ kind: 'device', deviceId: 'probe' }); return there!.length > 0; }, 3000, 10);
    await raw.publish(`${prefix}:events`, 'no event');
    await raw.publish(`${prefix}:events`, '{"kind":"desired"}');
    const before = here!.length;
    registry.events.emit({ kind: 'desired', deviceId: 'd' });
    await until('the event has arrived', () => there!.includes('desired d'), 3000, 10);
    expect(here!.slice(before)).toEqual(['desired d']);
    await otherLink.stop();
  });

  test('the audit log keeps its order, its latest entries alone, and shows only what passes', async () => {
    for (const who of ['alice', 'bob', 'alice']) await registry.audit.record({ who, what: 'set', before: undefined, after: { lambda: 0.2, bytes: 5n }, why: 'trial' });
    const { entries, last } = await registry.audit.latest(0, 10, ({ who }) => who === 'alice');
    expect(entries).toMatchObject([{ who: 'alice', before: '', after: '{"lambda":0.2,"bytes":"5"}', why: 'trial', coordinatorId: 'a', subject: { t: 'none' } }, { who: 'alice' }]);
    expect((await registry.audit.latest(0, 1, () => true)).entries).toMatchObject([{ id: last }]);
    await registry.audit.record({ who: 'carol', what: 'x'.repeat(10_000), subject: { t: 'devices', ids: Array.from({ length: 9000 }, String) } });
    const after = await registry.audit.after(last, () => true);
    expect(after.entries).toMatchObject([{ who: 'carol' }]);
    expect(JSON.stringify(after.entries[0]).length).toBeLessThan(2000);
    expect((await registry.audit.after(after.last, () => true)).entries).toEqual([]);
    await Promise.all(Array.from({ length: 2500 }, () => registry.audit.record({ who: 'dave', what: 'many' })));
    expect(await raw.xlen(`${prefix}:{audit}`)).toBeLessThan(1200);
    expect((await registry.audit.latest(0, 10_000, ({ who }) => who === 'alice')).entries).toEqual([]);
  });

  test('what is no audit entry hides no other, and a failed change is told as failed', async () => {
    await raw.xadd(`${prefix}:{audit}`, '*', 'entry', '{"who":3}');
    await raw.xadd(`${prefix}:{audit}`, '*', 'something', 'else');
    await expect(registry.audit.around({ who: 'alice', what: 'set' }, () => Promise.reject(new Error('no such device')))).rejects.toThrow('no such device');
    const { entries } = await registry.audit.latest(Date.now() - 60_000, 10, () => true);
    expect(entries.map(({ what, after }) => [what, after])).toEqual([['set', ''], ['failed: set', '{"reason":"no such device"}']]);
  });

  test('what cannot be decoded is left out and told, and hides nothing else', async () => {
    const held = await lease('d');
    await registry.devices.writeState(held, { info: testInfo({ id: 'd' }) });
    await raw.hset(`${prefix}:{dev:d}:state`, { reported: Buffer.from([0x0a, 0xff, 0xff, 0xff]), telemetry: 'rubbish', settledGeneration: '-3', lastSeenMs: 'NaN' });
    await raw.hset(`${prefix}:{dev:d}:pins`, { lambda: '{"order":1,"lambda":7}', cache: 'not json', tracing: '{"order":1,"traceRatio":0.5}' });
    const record = (await registry.devices.read('d'))!;
    expect(record.info?.hostname).toBe('host-d');
    expect(record).toMatchObject({ reported: undefined, settledGeneration: 0n, lastSeenMs: 0, pins: { tracing: { traceRatio: 0.5 } } });
    expect(Object.keys(record.pins)).toEqual(['tracing']);
    expect(record.damaged.join()).toMatch(/reported.*pin lambda.*pin cache/);
  });

  test('a damaged desired is not taken for one, and the next write heals it', async () => {
    await registry.devices.writeDesired('d', 0n, 0n, spec(0.1), '');
    await raw.hset(`${prefix}:{dev:d}:desired`, 'spec', 'something else');
    expect(await registry.devices.readDesired('d')).toEqual({ t: 'damaged', generation: 1n });
    await raw.hset(`${prefix}:{dev:d}:desired`, 'generation', 'many');
    expect(await registry.devices.readDesired('d')).toEqual({ t: 'damaged', generation: 0n });
    expect(await registry.devices.writeDesired('d', 0n, 5n, spec(0.2), '')).toEqual({ t: 'written', generation: 6n });
    expect(await registry.devices.readDesired('d')).toMatchObject({ t: 'set', hash: specHash(spec(0.2)) });
  });

  test.each(['nan', 'inf', '0x10', '1e3', '-3', '1.5', ' 5', '5\n', '99999999999999999999'])('a generation of %j is no number to anyone, and the next write heals it', async (generation) => {
    await registry.devices.writeDesired('d', 0n, 0n, spec(0.1), '');
    await raw.hset(`${prefix}:{dev:d}:desired`, 'generation', generation);
    expect(await registry.devices.readDesired('d')).toEqual({ t: 'damaged', generation: 0n });
    expect(await registry.devices.writeDesired('d', 0n, 5n, spec(0.2), '')).toEqual({ t: 'written', generation: 6n });
  });

  test('a key of another type is an error that names it, and hides one device only', async () => {
    await lease('good');
    await lease('bad');
    await raw.del(`${prefix}:{dev:bad}:state`);
    await raw.set(`${prefix}:{dev:bad}:state`, 'a string');
    await raw.sadd(`${prefix}:{devices}`, '../no id', '');
    await expect(registry.devices.read('bad')).rejects.toThrow(RegistryDataError);
    await expect(registry.devices.read('bad')).rejects.toThrow(`${prefix}:{dev:bad}:state`);
    expect((await registry.devices.readAll()).map((device) => device.id)).toEqual(['good']);
    await raw.set(`${prefix}:{rollouts}:r`, '{"id":"r"}');
    await expect(registry.rollouts.get('r')).rejects.toThrow(/no rollout: fields are missing/);
  });
});

test('Redis away at start is an error that names it and hides its password', async () => {
  const link = new RedisLink({ url: 'redis://:secret@127.0.0.1:1', cluster: false }, log, 300);
  const failure = await link.start().catch((error: unknown) => error as Error);
  await link.stop();
  expect(failure).toBeInstanceOf(RegistryUnavailableError);
  expect((failure as Error).message).toMatch(/redis:\/\/:\*\*\*@127\.0\.0\.1:1 does not answer \(connect ECONNREFUSED.*MOEFLEET_REDIS_URL/);
});

test('while Redis is away calls fail at once, and work again when it is back', async () => {
  const server = await startRedis();
  const link = new RedisLink({ url: server.url, cluster: false }, log);
  const registry = new Registry(link, { prefix: randomPrefix(), coordinatorId: 'a' }, log);
  await link.start();
  await server.stop();
  await until('it is noticed', () => !link.up, 5000, 10);
  await expect(registry.devices.read('d')).rejects.toThrow(RegistryUnavailableError);
  await server.start();
  await until('it is back', () => link.up, 5000, 10);
  expect(await registry.devices.read('d')).toBeNull();
  await link.stop();
  await server.close();
});
