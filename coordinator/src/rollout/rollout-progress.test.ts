import { DeviceSpec, Reported, SpecState } from '@moefleet/proto';
import { type DeviceProgress, specHash } from '../registry/device-record';
import type { RolloutRecord, RolloutRow } from '../registry/rollout-record';
import { judgeRollout, judgeRow } from './rollout-progress';

const SPEC = Buffer.from(DeviceSpec.encode({ ...DeviceSpec.decode(new Uint8Array()), lambda: 0.25 }).finish());
const OTHER = Buffer.from(DeviceSpec.encode({ ...DeviceSpec.decode(new Uint8Array()), lambda: 0.5 }).finish());
const HASH = specHash(SPEC);
const row: RolloutRow = { deviceId: 'd', state: 'pending', generation: 7, hash: HASH, reason: '' };

function desired(generation: bigint, spec: Buffer): DeviceProgress['desired'] {
  return { generation, hash: specHash(spec), origin: 'operator' };
}

function device({ said, ...rest }: Partial<DeviceProgress> & { said?: Partial<Reported> }): DeviceProgress {
  return { online: true, desired: desired(7n, SPEC), settledGeneration: 0n, reported: said ? { ...Reported.decode(new Uint8Array()), ...said } : undefined, ...rest };
}

const applied = { state: SpecState.SPEC_STATE_APPLIED, generation: 7n, appliedGeneration: 7n, appliedHash: Buffer.from(HASH, 'hex') };

test('follows a device from waiting to having applied it', () => {
  expect(judgeRow(row, device({})).state).toBe('pending');
  expect(judgeRow(row, device({ said: { state: SpecState.SPEC_STATE_APPLYING, generation: 7n } })).state).toBe('applying');
  expect(judgeRow(row, device({ said: applied, settledGeneration: 7n })).state).toBe('applied');
});

test('does not believe an old report of the same spec while something else is on its way', () => {
  expect(judgeRow(row, device({ said: { ...applied, generation: 5n, appliedGeneration: 5n }, settledGeneration: 5n })).state).toBe('pending');
});

test('a refusal carries the device\'s reason', () => {
  const judged = judgeRow(row, device({ said: { state: SpecState.SPEC_STATE_FAILED, generation: 7n, reason: 'no memory' } }));
  expect(judged).toMatchObject({ state: 'failed', reason: 'no memory' });
});

test('an earlier refusal is not held against a later spec', () => {
  expect(judgeRow(row, device({ said: { state: SpecState.SPEC_STATE_FAILED, generation: 6n } })).state).toBe('pending');
});

test('a device without a stream is offline, and pending again when it is back', () => {
  const offline = judgeRow(row, device({ online: false }));
  expect(offline.state).toBe('offline');
  expect(judgeRow(offline, device({})).state).toBe('pending');
});

test('a newer spec supersedes, a newer generation of the same spec does not', () => {
  expect(judgeRow(row, device({ desired: desired(8n, OTHER) })).state).toBe('superseded');
  expect(judgeRow(row, device({ desired: desired(8n, SPEC) })).state).toBe('pending');
});

test('a device the registry has lost fails', () => {
  expect(judgeRow(row, null).state).toBe('failed');
});

const rollout: RolloutRecord = { id: 'r', what: '', origin: '', createdMs: 0, deadlineMs: 1000, state: 'running', rows: [] };
const rows = (...states: RolloutRow['state'][]) => states.map((state) => ({ ...row, state }));

test.each([
  [['applied', 'pending'], 10, 'running'],
  [['applied', 'offline'], 10, 'done'],
  [['applied', 'unchanged'], 10, 'done'],
  [['offline', 'applying'], 10, 'running'],
  [['applied', 'failed'], 10, 'incomplete'],
  [['applied', 'superseded'], 10, 'incomplete'],
  [['applied', 'pending'], 1000, 'incomplete'],
  [[], 10, 'done'],
] as const)('devices %j at %d ms make it %s', (states, nowMs, expected) => {
  expect(judgeRollout(rollout, rows(...states), nowMs).state).toBe(expected);
});
