/** Who did what, over real gRPC. */
import { credentials } from '@grpc/grpc-js';
import { AccessServiceClient, type AuditEntry, Proposal, type ReadAuditRequest } from '@moefleet/proto';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { MODEL_HASH } from '../testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from '../testing/test-coordinator';

let redis: TestRedis;
let coordinator: TestCoordinator;
let access: AccessServiceClient;

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
beforeEach(async () => {
  coordinator = await startCoordinator(redis.url);
  access = new AccessServiceClient(coordinator.addresses().operatorAddress, credentials.createInsecure());
});
afterEach(async () => {
  access.close();
  await coordinator.close();
});

const join = (id: string, labels: Record<string, string> = {}) => coordinator.join({ id, labels });

async function audit(request: Partial<ReadAuditRequest> = {}): Promise<AuditEntry[]> {
  const entries: AuditEntry[] = [];
  const stream = access.readAudit({ sinceMs: 0n, deviceId: '', who: '', limit: 0, follow: false, ...request });
  for await (const { entry } of stream as AsyncIterable<{ entry: AuditEntry }>) entries.push(entry);
  return entries;
}

const setLambda = (lambda: number) => ({ $case: 'setLambda' as const, value: { lambda, topJ: undefined } });
const matching = (expression: string) => ({ kind: { $case: 'selector' as const, value: { matchLabels: {}, expression } } });

test('a change is told with what was, what is, and why; a device sees what is about it', async () => {
  await join('d1', { site: 'lab' });
  await join('d2', { site: 'roof' });
  await change(coordinator.operator, { change: setLambda(0.2), why: 'first' });
  await change(coordinator.operator, { change: setLambda(0.3), why: 'second' });
  await change(coordinator.operator, { change: setLambda(0.1), target: matching('site in (lab,attic)') });
  await change(coordinator.operator, { change: { $case: 'clearLambda', value: {} }, target: { kind: { $case: 'deviceId', value: 'd2' } } });
  const all = await audit();
  expect(all.map(({ what }) => what)).toEqual(['lambda 0.2 on all devices', 'lambda 0.3 on all devices', 'lambda 0.1 on devices with site in (attic,lab)', 'routing back to the learner on device d2']);
  expect(all[1]).toMatchObject({ who: 'local (no authentication)', why: 'second', coordinatorId: 'coordinator-a', allDevices: true });
  expect(JSON.parse(all[1]!.before)).toMatchObject({ lambda: 0.2, why: 'first' });
  expect(JSON.parse(all[1]!.after)).toMatchObject({ routing: { lambda: 0.3 } });
  expect([all[3]!.before, all[3]!.after]).toEqual(['', '']);
  expect((await audit({ deviceId: 'd1' })).map(({ what }) => what)).toEqual(all.slice(0, 3).map(({ what }) => what));
  expect((await audit({ deviceId: 'd2' })).map(({ selector }) => selector)).toEqual(['', '', '']);
  expect((await audit({ limit: 1 })).map(({ id }) => id)).toEqual([all[3]!.id]);
  expect(await audit({ who: 'alice' })).toEqual([]);
});

test('a change that is refused is told as failed', async () => {
  await join('d');
  const tooSmall = { $case: 'setCache' as const, value: { size: { $case: 'capacity' as const, value: 1 } } };
  await expect(change(coordinator.operator, { change: tooSmall })).rejects.toMatchObject({ details: expect.stringMatching(/set_cache\.capacity: 1/) as string });
  expect((await audit()).map(({ what }) => what)).toEqual(['capacity 1 in every layer on all devices', 'failed: capacity 1 in every layer on all devices']);
});

test('a learner that repeats itself is told once', async () => {
  await join('d');
  const propose = (lambda: number) => call(coordinator, 'propose', { proposals: [{ ...Proposal.decode(new Uint8Array()), deviceId: 'd', modelHash: MODEL_HASH, proposed: true, reason: 'best within 1%', lambda }] });
  for (const lambda of [0.1, 0.1, 0.2, 0.2]) await propose(lambda);
  const entries = await audit({ deviceId: 'd' });
  expect(entries.map(({ after }) => (JSON.parse(after) as { d: { lambda: number } }).d.lambda)).toEqual([0.1, 0.2]);
  expect(JSON.parse(entries[1]!.before)).toMatchObject({ d: { lambda: 0.1 } });
});

test('one who follows sees what another coordinator does, and leaves nothing behind', async () => {
  const other = await startCoordinator(redis.url, { prefix: coordinator.prefix, id: 'coordinator-b' });
  try {
    const seen: AuditEntry[] = [];
    const stream = access.readAudit({ sinceMs: 0n, deviceId: '', who: '', limit: 0, follow: true });
    stream.on('data', ({ entry }: { entry: AuditEntry }) => seen.push(entry));
    stream.on('error', () => {});
    await change(coordinator.operator, { change: setLambda(0.2) });
    await change(other.operator, { change: setLambda(0.3) });
    await until('both are seen', () => seen.length === 2, 5000, 10);
    expect(seen.map(({ coordinatorId }) => coordinatorId)).toEqual(['coordinator-a', 'coordinator-b']);
    stream.cancel();
  } finally {
    await other.close();
  }
});
