import { Coordinator, type Device, DeviceIdentity, DeviceInfo, ModelState_Status, Reported, SpecState, TelemetryFrame } from '@moefleet/proto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { device } from '../testing/scripted-operator';
import { checksText } from './check';
import { checkRedis, checkFleetFolder, checkStoreFolder } from './coordinator-machine';
import { checkCoordinators, checkDeviceRecord } from './fleet-checks';

const NOW = 1_800_000_000_000;
const DAY = 24 * 3_600_000;
const info = ({ agentVersion = '1.0.0', ...model }: { agentVersion?: string; status?: ModelState_Status; message?: string; hostCrashes?: number }) =>
  DeviceInfo.fromPartial({ agentVersion, model: { status: ModelState_Status.STATUS_READY, name: 'm', ...model } });
const good: Partial<Device> = { info: info({}), drift: false, held: false, reported: Reported.fromPartial({ state: SpecState.SPEC_STATE_APPLIED }), telemetry: undefined };
const trouble = (change: Partial<Device>) => checkDeviceRecord(device('phone-1', { ...good, ...change }), NOW, '1.0.0').filter(({ state }) => state !== 'ok');

test('a device in good order has nothing to mend', () => {
  expect(trouble({ telemetry: TelemetryFrame.fromPartial({ stallNs: 90n, decodeNs: 100n, decodeTokens: 3n }) })).toEqual([]);
  expect(trouble({ identity: DeviceIdentity.fromPartial({ keyHash: 'a', notAfterMs: BigInt(NOW + 5 * DAY) }) })).toEqual([]);
});

test.each<[string, Partial<Device>, string, RegExp, RegExp]>([
  ['offline', { online: false, lastSeenMs: BigInt(NOW - 3_600_000) }, 'broken', /offline, last seen 1h ago/, /doctor --ssh/],
  ['never seen', { online: false, lastSeenMs: 0n }, 'broken', /last seen never/, /systemctl/],
  ['revoked', { identity: DeviceIdentity.fromPartial({ revokedMs: 1n, revokedWhy: 'lost' }) }, 'broken', /revoked \(lost\)/, /unrevoke phone-1/],
  ['a clone', { identity: DeviceIdentity.fromPartial({ clonedMs: 1n, clones: [{ hostname: 'a', peer: '10.0.0.1' }, { hostname: 'b', peer: '10.0.0.2' }] }) }, 'broken', /a \(10\.0\.0\.1\) and b/, /clear-clone phone-1/],
  ['an expired certificate', { identity: DeviceIdentity.fromPartial({ notAfterMs: BigInt(NOW - DAY) }) }, 'broken', /expired 1d ago/, /reenrol/],
  ['a certificate that was not renewed', { identity: DeviceIdentity.fromPartial({ notAfterMs: BigInt(NOW + 3_600_000) }) }, 'slow', /runs out in 1h/, /log/],
  ['a model that failed', { info: info({ status: ModelState_Status.STATUS_FAILED, message: 'cut short' }) }, 'broken', /cut short/, /--model FILE/],
  ['a model on its way', { info: DeviceInfo.fromPartial({ agentVersion: '1.0.0', modelFetch: { manifestSha256: 'ab'.repeat(32), bytesDone: 430n, bytesTotal: 1000n, waiting: 'quiet hours until 18:00' } }) }, 'note', /abababababab: 43%, waits: quiet hours/, /config explain phone-1/],
  ['an engine that ended', { info: info({ hostCrashes: 2, message: 'killed' }) }, 'slow', /2 times.*killed/, /--cache/],
  ['a refused spec', { reported: Reported.fromPartial({ state: SpecState.SPEC_STATE_FAILED, reason: 'layers' }) }, 'broken', /refused: layers/, /config explain phone-1/],
  ['held', { held: true }, 'broken', /held/, /accept-restore/],
  ['drifting', { drift: true }, 'slow', /does not run yet/, /config explain/],
  ['another version', { info: info({ agentVersion: '0.9.0' }) }, 'note', /agent 0\.9\.0, here is 1\.0\.0/, /deploy ssh/],
  ['short of memory', { telemetry: TelemetryFrame.fromPartial({ cacheLimitBytes: 1048576n }) }, 'slow', /held to 1\.00 MiB/, /cache set/],
  ['under pressure', { telemetry: TelemetryFrame.fromPartial({ memoryPressurePercent: 42 }) }, 'slow', /42% of the time/, /stop/],
  ['bound by flash', { telemetry: TelemetryFrame.fromPartial({ stallNs: 70n, prefillNs: 20n, decodeNs: 80n, decodeTokens: 100n }) }, 'slow', /70% of the time/, /lambda set 0\.2 --device phone-1/],
  ['losing spans', { telemetry: TelemetryFrame.fromPartial({ misses: { dropped: 5n } }) }, 'note', /5 spans/, /spool/],
])('%s is told with what mends it', (_name, change, state, found, remedy) => {
  const [first, ...more] = trouble(change);
  expect(more).toEqual([]);
  expect(first).toMatchObject({ state, subject: 'phone-1', found: expect.stringMatching(found), remedy: expect.stringMatching(remedy) });
});

test('coordinators: another version, and frames that were shed', () => {
  const checks = checkCoordinators([Coordinator.fromPartial({ coordinatorId: 'c1', version: '0.9.0', streams: 3, framesShed: 7n, sinceMs: BigInt(NOW) })], NOW, '1.0.0');
  expect(checks.map(({ state, check }) => `${state} ${check}`)).toEqual(['ok alive', 'note version', 'slow telemetry']);
});

test('a Redis that forgets, evicts, is old, slow, full or a replica is told so', () => {
  const redis = { url: 'redis://r:1', error: null, version: '7.0.15', role: 'master', appendOnly: true, evictionPolicy: 'noeviction', maxMemoryBytes: 0, usedMemoryBytes: 1, roundTripMs: 0.2 };
  expect(checkRedis(redis).every(({ state }) => state === 'ok')).toBe(true);
  const states = (change: Partial<typeof redis>) => checkRedis({ ...redis, ...change }).filter(({ state }) => state !== 'ok').map(({ state, check }) => `${state} ${check}`);
  expect(states({ appendOnly: false })).toEqual(['slow persistence']);
  expect(states({ evictionPolicy: 'allkeys-lru' })).toEqual(['broken eviction']);
  expect(states({ version: '5.0.14' })).toEqual(['broken version']);
  expect(states({ roundTripMs: 40 })).toEqual(['slow answers']);
  expect(states({ maxMemoryBytes: 100, usedMemoryBytes: 90 })).toEqual(['slow memory']);
  expect(states({ role: 'slave' })).toEqual(['broken role']);
  expect(checkRedis({ ...redis, error: 'ECONNREFUSED' } as never)).toMatchObject([{ state: 'broken', found: 'ECONNREFUSED' }]);
});

test('a store that cannot be written, and one that has room', () => {
  const states = (artifactFolder: string | null) => checkStoreFolder({ artifactFolder, artifactS3: null }).map(({ state, check }) => `${state} ${check}`);
  expect(states(join(__filename, 'store'))).toEqual(['broken store']);
  expect(states(null)).toEqual(['note models']);
  expect(checkStoreFolder({ artifactFolder: join(tmpdir(), 'not-made-yet'), artifactS3: null })[0]!.found).toMatch(/iB free/);
  expect(checkStoreFolder({ artifactFolder: null, artifactS3: { bucket: 'b', prefix: 'p', endpoint: '', region: '' } })[0]!.found).toBe('kept in s3://b/p');
});

test('a fleet folder that is not there, and few open files', () => {
  expect(checkFleetFolder({ tlsFolder: '/nowhere' }, 'Max open files            1024                 4096                 files\n', NOW).map(({ state, check }) => `${state} ${check}`))
    .toEqual(['broken fleet\'s CA', 'broken CA\'s key', 'note bundle key', 'slow open files']);
});

test('the worst comes first, and what mends it below', () => {
  const text = checksText([{ state: 'ok', subject: 'a', check: 'x', found: 'fine', remedy: '' }, { state: 'broken', subject: 'b', check: 'y', found: 'gone', remedy: 'bring it back' }]);
  expect(text.indexOf('BROKEN')).toBeLessThan(text.indexOf('fine'));
  expect(text).toContain('b, y:  bring it back');
});
