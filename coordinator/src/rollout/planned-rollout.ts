/** A rollout before its first step: its record, and one row per device with the stage it belongs to. Pure but for the id. */
import { randomBytes } from 'node:crypto';
import { DeviceSpec, Proposal } from '@moefleet/proto';
import type { DeviceRecord } from '../registry/device-record';
import type { SharedPins } from '../registry/pin-store';
import { isTaken, type StagedRollout, type StagedRow } from '../registry/staged-rollout';
import type { StagedValue } from '../registry/staged-value';
import { specInputs } from './desired-writer';
import { effectiveSpec, layerText } from './effective-spec';
import { parseGates } from './gate';
import { specText } from './spec-text';
import { orderDevices, stageAt, type StageBound } from './stage-plan';

export interface Staging {
  readonly stages: string;
  readonly soakMs: number;
  readonly gate: string;
  readonly maxUnavailable: number;
  readonly deadlineMs: number;
}

export interface PlannedRow { deviceId: string; online: boolean; stage: number; before: string; after: string; unchanged: string }

const LABEL_OF_CLASS = 'class';

export function plannedRollout(staging: Staging, stages: readonly StageBound[], about: Pick<StagedRollout, 'what' | 'who' | 'why' | 'field' | 'layer' | 'pin' | 'previousPin'>): StagedRollout {
  const nowMs = Date.now();
  return {
    ...about, id: `ro-${nowMs.toString(36)}-${randomBytes(4).toString('hex')}`, revision: 0, createdMs: nowMs, updatedMs: nowMs, state: 'planned', reason: '', endsAs: 'rolled_back',
    stages, gates: parseGates(staging.gate).map((gate) => gate.text), soakMs: staging.soakMs, maxUnavailable: staging.maxUnavailable, deadlineMs: staging.deadlineMs,
    stage: 1, phase: 'applying', phaseSinceMs: nowMs,
  };
}

/** Rows with their stage, in the order in which devices get the change; those that do not change come last. `seed` draws. */
export function staged(stages: readonly StageBound[], seed: string, drawn: readonly { device: DeviceRecord; row: PlannedRow }[]): PlannedRow[] {
  const changing = drawn.filter(({ row }) => row.unchanged === '');
  const order = orderDevices(seed, changing.map(({ device }) => ({ deviceId: device.id, online: device.lease !== null, class: device.labels[LABEL_OF_CLASS] ?? '' })));
  const position = new Map(order.map((id, at) => [id, at]));
  return drawn.map(({ row }) => (row.unchanged === '' ? { ...row, stage: stageAt(stages, position.get(row.deviceId)!) } : row))
    .sort((a, b) => (a.stage || Infinity) - (b.stage || Infinity) || (a.deviceId < b.deviceId ? -1 : 1));
}

/** `fields`: of the spec, that the value is about; `proposal`: the learner's, where it is one of his. */
export function plannedRow(device: DeviceRecord, value: StagedValue, fields: readonly string[], proposal: Proposal | null, shared: SharedPins): PlannedRow {
  const inputs = specInputs(device, shared);
  const now = effectiveSpec(inputs);
  const then = effectiveSpec({ ...inputs, shared: { ...shared, staged: [...shared.staged, value] }, marks: new Map([...device.marks, [value.rolloutId, proposal]]) });
  const same = Buffer.from(DeviceSpec.encode(now.spec).finish()).equals(DeviceSpec.encode(then.spec).finish());
  const won = then.sources.find((source) => fields.includes(source.field));
  const fromHere = won && layerText(won).startsWith(value.layer.t === 'learner' ? 'learner' : `${value.layer.t} pin`);
  return {
    deviceId: device.id, online: device.lease !== null, stage: 0, before: specText(now.spec, value.field), after: specText(then.spec, value.field),
    unchanged: !same ? '' : fromHere || !won || layerText(won) === 'default' ? 'it runs this already' : `the ${layerText(won)} stands`,
  };
}

export function newRow({ deviceId, stage, unchanged }: PlannedRow): StagedRow {
  return { deviceId, stage, state: stage > 0 ? 'waiting' : 'unchanged', generation: 0, hash: '', reason: unchanged, lastGood: null, baseline: null, measured: null, tries: 0, findings: [] };
}

/** What the learner would have the device run, and what of his it ran before; null in a rollout of another's. */
export function proposalOf({ proposal, previous }: StagedRow): { proposal: Proposal; previous: Proposal | null } | null {
  if (!proposal) return null;
  return { proposal: Proposal.decode(Buffer.from(proposal, 'base64')), previous: previous ? Proposal.decode(Buffer.from(previous, 'base64')) : null };
}

/** Of the rows that change by this rollout. */
export function proposalsOf(rows: readonly StagedRow[]): { proposal: Proposal; previous: Proposal | null }[] {
  return rows.flatMap((row) => (row.stage > 0 && !isTaken(row) ? proposalOf(row) ?? [] : []));
}
