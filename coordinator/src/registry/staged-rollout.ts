/** A rollout in stages as it is stored: one record, and one row per device. What comes back from Redis is checked. */
import { Proposal } from '@moefleet/proto';
import type { PinByField, PinField } from './pin';
import type { StagedLayer } from './staged-value';

export const STAGED_STATES = ['planned', 'running', 'paused', 'inconclusive', 'rolling_back', 'rolled_back', 'superseded', 'done'] as const;
export type StagedState = typeof STAGED_STATES[number];
/** leaving, superseded: a newer change has taken the device, which is about to lose the rollout's mark, or has lost it */
export const STAGED_ROW_STATES = ['waiting', 'pending', 'applied', 'failed', 'offline', 'unchanged', 'reverting', 'reverted', 'leaving', 'superseded'] as const;
export type StagedRowState = typeof STAGED_ROW_STATES[number];
/** baseline: measured before the change; applying: devices of the stage get it; judging: soaked and measured */
export const PHASES = ['baseline', 'applying', 'judging'] as const;
export type Phase = typeof PHASES[number];

/** What a device has measured: nats per token of each window, at its spec and at lambda 0. */
export interface Measured {
  readonly windows: readonly number[];
  readonly windowsLambdaZero: readonly number[];
  /** of each window; absent from earlier coordinators */
  readonly windowTokens?: number;
  readonly missRate: number | null;
  readonly swapRate: number | null;
  readonly tokensPerSecond: number | null;
}

export interface Finding {
  readonly gate: string;
  readonly verdict: 'pass' | 'fail' | 'unclear';
  readonly value: number | null;
  /** of the one-sided 95% bounds; null where the value is exact or there is none */
  readonly low: number | null;
  readonly high: number | null;
  readonly limit: number | null;
  readonly windows: number;
  readonly text: string;
}

/** What a device ran before the change. */
export interface LastGood {
  /** base64 of the spec's bytes; empty where it had none */
  readonly spec: string;
  readonly hash: string;
  readonly bootId: string;
  readonly requestsFailed: number;
  readonly hostCrashes: number;
}

export interface StagedRow {
  readonly deviceId: string;
  /** from 1; 0: it does not change */
  readonly stage: number;
  readonly state: StagedRowState;
  readonly generation: number;
  readonly hash: string;
  readonly reason: string;
  readonly lastGood: LastGood | null;
  readonly baseline: Measured | null;
  readonly measured: Measured | null;
  /** measurements asked for in this stage */
  readonly tries: number;
  readonly findings: readonly Finding[];
  /** of a rollout of the learner's: base64 of the Proposal it shall get, and of the one it had; '' for none */
  readonly proposal?: string;
  readonly previous?: string;
}

export interface StagedRollout {
  readonly id: string;
  /** counts up by one per write */
  readonly revision: number;
  readonly what: string;
  readonly who: string;
  readonly why: string;
  readonly createdMs: number;
  readonly updatedMs: number;
  readonly state: StagedState;
  readonly reason: string;
  /** what a rollback ends as */
  readonly endsAs: 'rolled_back' | 'superseded';
  readonly field: PinField;
  readonly layer: StagedLayer;
  readonly pin: PinByField[PinField] | null;
  /** what the layer held before; a rollback of a finished rollout puts it back */
  readonly previousPin: PinByField[PinField] | null;
  readonly stages: readonly { readonly asked: string; readonly devices: number }[];
  readonly gates: readonly string[];
  readonly soakMs: number;
  /** 0: all of a stage may be on the way, none may fail */
  readonly maxUnavailable: number;
  readonly deadlineMs: number;
  /** from 1 */
  readonly stage: number;
  readonly phase: Phase;
  readonly phaseSinceMs: number;
  /** its value has become its layer's, or is about to: a rollback then puts back what was there */
  readonly promoted?: boolean;
}

export function isOver({ state }: Pick<StagedRollout, 'state'>): boolean {
  return state === 'rolled_back' || state === 'superseded' || state === 'done';
}

/** Whether the device belongs to a newer change by now, and to this rollout no more. */
export function isTaken({ state }: Pick<StagedRow, 'state'>): boolean {
  return state === 'leaving' || state === 'superseded';
}

/** Throws a TypeError for what is no rollout. */
export function decodeStagedRollout(json: string): StagedRollout {
  const value = JSON.parse(json) as Partial<StagedRollout> | null;
  const texts = [value?.id, value?.what, value?.who, value?.why, value?.reason];
  const counts = [value?.revision, value?.createdMs, value?.updatedMs, value?.soakMs, value?.maxUnavailable, value?.deadlineMs, value?.stage, value?.phaseSinceMs];
  if (!value || !texts.every((text) => typeof text === 'string') || !counts.every(isCount)) throw new TypeError('fields are missing');
  if (!STAGED_STATES.includes(value.state!) || !PHASES.includes(value.phase!)) throw new TypeError('its state or phase is unknown');
  if (!Array.isArray(value.stages) || !value.stages.every((stage) => typeof stage?.asked === 'string' && isCount(stage.devices))) throw new TypeError('its stages are no list of stages');
  if (!Array.isArray(value.gates) || !value.gates.every((gate) => typeof gate === 'string')) throw new TypeError('its gates are no list of texts');
  if (typeof value.layer?.t !== 'string' || typeof value.field !== 'string') throw new TypeError('its layer is unknown');
  return value as StagedRollout;
}

export function decodeStagedRow(json: string): StagedRow {
  const value = JSON.parse(json) as Partial<StagedRow> | null;
  const ok = value && [value.deviceId, value.hash, value.reason].every((text) => typeof text === 'string') && [value.stage, value.generation, value.tries].every(isCount)
    && STAGED_ROW_STATES.includes(value.state!) && [value.proposal ?? '', value.previous ?? ''].every((text) => typeof text === 'string') && Array.isArray(value.findings) && isMeasured(value.measured) && isMeasured(value.baseline);
  if (!ok) throw new TypeError('it is no row of a rollout');
  for (const bytes of [value.proposal, value.previous]) if (bytes) Proposal.decode(Buffer.from(bytes, 'base64'));
  return value as StagedRow;
}

function isMeasured(value: unknown): boolean {
  if (value === null) return true;
  const { windows, windowsLambdaZero } = (value ?? {}) as Partial<Measured>;
  return [windows, windowsLambdaZero].every((list) => Array.isArray(list) && list.every((item) => typeof item === 'number'));
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
