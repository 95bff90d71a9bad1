/**
 * One step of a staged rollout: a pure function of its record, its rows and what the registry says about its devices.
 * Level-based: it says what shall be (rows that shall carry the mark, measurements that are wanted) and whoever runs it
 * makes that so, as often as it takes; a step that is lost or done twice changes nothing.
 *
 * A stage goes through three phases: baseline (devices measure themselves before the change, where a gate asks for it),
 * applying (each device gets it, at most maxUnavailable on the way or failed at once), judging (it soaks while devices
 * measure themselves; then the gates decide). A gate that fails takes the change back everywhere at once; one that is
 * unclear is measured again on more text, and then holds the rollout: it never passes for want of data.
 */
import { SpecState } from '@moefleet/proto';
import { type DeviceRecord, speaksOf } from '../registry/device-record';
import type { MeasureAnswer } from '../registry/measure-store';
import { type Finding, isTaken, type LastGood, type Measured, type Phase, type StagedRollout, type StagedRow } from '../registry/staged-rollout';
import { type Gate, judgeGate, needsBaseline, needsMeasure } from './gate';
import { runs } from './rollout-progress';

/** What is known about a device of the rollout. */
export interface Sight {
  /** null: the registry has lost it */
  readonly device: DeviceRecord | null;
  /** hash of the spec that the layers, its marks included, give it */
  readonly wantedHash: string;
  /** they give it none */
  readonly wantsNothing: boolean;
  /** to the measurement that was asked for last */
  readonly answer: MeasureAnswer | null;
}

export interface StepView {
  readonly sights: ReadonlyMap<string, Sight>;
  /** of the rollout, in the form that is judged */
  readonly gates: readonly Gate[];
  /** why the kill switch stands in the way; null where it does not */
  readonly halted: string | null;
  readonly nowMs: number;
}

export interface Step {
  readonly rollout: StagedRollout;
  readonly rows: readonly StagedRow[];
  /** its value is to become its layer's before this step counts */
  readonly promote: boolean;
}

/** Of one device in one stage; each on twice the text of the one before. */
export const MOST_TRIES = 3;
/** Of a stage; more would tell no more about its quality. */
const MOST_MEASURED = 200;

type Running = { rollout: StagedRollout; rows: StagedRow[]; view: StepView };

export function stepRollout(rollout: StagedRollout, rows: readonly StagedRow[], view: StepView): Step {
  switch (rollout.state) {
    case 'planned': return { rollout: enter(rollout, 1, view), rows, promote: false };
    case 'running': {
      if (view.halted !== null) return { rollout: { ...rollout, state: 'paused', reason: view.halted }, rows, promote: false };
      const running = { rollout, rows: [...rows], view };
      if (rollout.phase === 'baseline') return stepBaseline(running);
      return rollout.phase === 'applying' ? stepApplying(running) : stepJudging(running);
    }
    case 'rolling_back': return stepBack(rollout, rows, view);
    default: return { rollout, rows, promote: false };
  }
}

/** The id of the measurement a row waits for; null where it waits for none. */
export function measureId(rollout: StagedRollout, row: StagedRow): string | null {
  if (rollout.state !== 'running' || row.stage !== rollout.stage || row.tries === 0) return null;
  if (rollout.phase === 'baseline' ? row.baseline !== null : rollout.phase !== 'judging' || row.measured !== null) return null;
  return `${rollout.id}/${rollout.phase}/${row.stage}/${row.tries}`;
}

/** Whether the device shall carry the rollout's mark. */
export function wantsMark(row: StagedRow): boolean {
  return ['pending', 'applied', 'failed', 'offline'].includes(row.state);
}

export function takeBack(rollout: StagedRollout, reason: string, nowMs: number, endsAs: StagedRollout['endsAs'] = 'rolled_back'): StagedRollout {
  return { ...rollout, state: 'rolling_back', endsAs, reason, phaseSinceMs: nowMs };
}

/** After a hold: the stage is measured anew. */
export function resumed(rollout: StagedRollout, rows: readonly StagedRow[], nowMs: number): { rollout: StagedRollout; rows: StagedRow[] } {
  const again = rollout.state === 'inconclusive';
  return {
    rollout: { ...rollout, state: 'running', reason: '', phaseSinceMs: nowMs },
    rows: rows.map((row) => (again && row.stage === rollout.stage ? { ...row, measured: null, tries: 0, findings: [] } : row)),
  };
}

function enter(rollout: StagedRollout, stage: number, { gates, nowMs }: StepView): StagedRollout {
  return enterPhase({ ...rollout, state: 'running', stage, reason: '' }, needsBaseline(gates) ? 'baseline' : 'applying', nowMs);
}

function enterPhase(rollout: StagedRollout, phase: Phase, nowMs: number): StagedRollout {
  return { ...rollout, phase, phaseSinceMs: nowMs };
}

function isLate({ rollout, view }: Running): boolean {
  return view.nowMs >= rollout.phaseSinceMs + rollout.deadlineMs;
}

function inStage({ rollout }: Running, row: StagedRow): boolean {
  return row.stage === rollout.stage && row.state !== 'unchanged' && !isTaken(row);
}

function stepBaseline(running: Running): Step {
  const { rollout, view } = running;
  let waits = false;
  let measured = 0;
  const rows = running.rows.map((row) => {
    if (!inStage(running, row) || measured >= MOST_MEASURED) return row;
    measured += 1;
    const sight = view.sights.get(row.deviceId);
    if (row.baseline || !sight?.device?.lease) return row;
    const next = takeAnswer(row, sight.answer, (result) => ({ ...row, baseline: measuredOf(result), tries: 0 }));
    waits ||= next.baseline === null && next.tries <= MOST_TRIES;
    return next;
  });
  if (waits && !isLate(running)) return { rollout, rows, promote: false };
  return { rollout: enterPhase(rollout, 'applying', view.nowMs), rows: rows.map((row) => (inStage(running, row) ? { ...row, tries: 0 } : row)), promote: false };
}

function stepApplying(running: Running): Step {
  const { rollout, view } = running;
  const late = isLate(running);
  let rows = running.rows.map((row) => (inStage(running, row) ? judgeApplying(rollout, row, view.sights.get(row.deviceId), late) : row));
  const stage = () => rows.filter((row) => inStage(running, row));
  const count = (state: StagedRow['state']) => stage().filter((row) => row.state === state).length;
  const failed = rows.filter((row) => row.state === 'failed');
  const none = rollout.maxUnavailable > 0 && failed.length >= rollout.maxUnavailable && count('waiting') > 0;
  if (failed.length > rollout.maxUnavailable || none) {
    const told = failed.slice(0, 3).map((row) => `${row.deviceId}: ${row.reason}`).join('; ');
    return { rollout: takeBack(rollout, `stage ${rollout.stage}: ${failed.length} devices failed, ${rollout.maxUnavailable} may (${told})`, view.nowMs), rows, promote: false };
  }
  let free = rollout.maxUnavailable === 0 ? Infinity : rollout.maxUnavailable - count('pending') - failed.length;
  rows = rows.map((row) => {
    if (!inStage(running, row) || row.state !== 'waiting') return row;
    const device = view.sights.get(row.deviceId)?.device ?? null;
    if (device?.lease && free <= 0) return row;
    if (device?.lease) free -= 1;
    return { ...row, state: device?.lease ? 'pending' : 'offline', lastGood: lastGoodOf(device) };
  });
  const open = count('waiting') + count('pending') > 0 || (count('offline') > 0 && !late);
  return { rollout: open ? rollout : enterPhase(rollout, 'judging', view.nowMs), rows, promote: false };
}

function judgeApplying(rollout: StagedRollout, row: StagedRow, sight: Sight | undefined, late: boolean): StagedRow {
  if (row.state !== 'pending' && row.state !== 'offline') return row;
  const device = sight?.device;
  if (!device) return { ...row, state: 'failed', reason: 'the registry no longer knows the device' };
  if (!device.lease) return { ...row, state: 'offline', reason: 'not connected; it gets the change when it comes back' };
  const waiting: StagedRow = late ? { ...row, state: 'failed', reason: 'it did not answer by the deadline' } : { ...row, state: 'pending', reason: '' };
  const { desired, reported } = device;
  if (!device.marks.has(rollout.id)) return waiting;
  if (desired.t !== 'set') return sight.wantsNothing ? { ...row, state: 'applied', reason: '' } : waiting;
  if (desired.hash !== sight.wantedHash) return waiting;
  const told = { generation: Number(desired.generation), hash: desired.hash };
  if (speaksOf(reported, desired.generation, desired.hash) && reported.state === SpecState.SPEC_STATE_FAILED) {
    return { ...row, ...told, state: 'failed', reason: reported.reason || 'the device gave no reason' };
  }
  return runs(device, desired.hash, told.generation) ? { ...row, ...told, state: 'applied', reason: '' } : { ...waiting, ...told };
}

function stepJudging(running: Running): Step {
  const { rollout, view } = running;
  const { gates } = view;
  const measures = needsMeasure(gates);
  let subjects = 0;
  let waits = false;
  const rows = running.rows.map((row) => {
    if (!inStage(running, row) || row.state !== 'applied') return row;
    const sight = view.sights.get(row.deviceId);
    let next = row;
    subjects += 1;
    const sampled = measures && subjects <= MOST_MEASURED;
    if (sampled && !row.measured) {
      next = takeAnswer(row, sight?.answer ?? null, (result) => (Number(result.generation) === row.generation ? { ...row, measured: measuredOf(result) } : { ...row, tries: row.tries + 1 }));
      waits ||= !next.measured && next.tries <= MOST_TRIES;
    }
    const judged = gates.filter((gate) => gate.metric === 'errors' || sampled);
    const findings = judged.map((gate) => judgeGate(gate, { measured: next.measured, baseline: next.baseline, errors: errorsSince(next.lastGood, sight?.device ?? null) }));
    return { ...next, findings };
  });
  const judgedRows = rows.filter((row) => inStage(running, row) && row.state === 'applied');
  const failing = judgedRows.flatMap((row) => row.findings.filter((finding) => finding.verdict === 'fail').map((finding) => ({ row, finding })));
  if (failing.length > 0) {
    const told = failing.slice(0, 3).map(({ row, finding }) => `${row.deviceId}: ${finding.gate} failed: ${finding.text}`).join('; ');
    return { rollout: takeBack(rollout, `stage ${rollout.stage}: ${told}`, view.nowMs), rows, promote: false };
  }
  if ((waits && !isLate(running)) || view.nowMs < rollout.phaseSinceMs + rollout.soakMs) return { rollout, rows, promote: false };
  return decide(running, rows, judgedRows, gates.length > 0);
}

function decide(running: Running, rows: readonly StagedRow[], judged: readonly StagedRow[], gated: boolean): Step {
  const { rollout, view } = running;
  const unclear = judged.filter((row) => row.findings.some((finding) => finding.verdict === 'unclear'));
  const again = new Set(unclear.filter((row) => row.measured && row.tries < MOST_TRIES).map((row) => row.deviceId));
  if (again.size > 0) {
    return { rollout: { ...rollout, phaseSinceMs: view.nowMs - rollout.soakMs }, rows: rows.map((row) => (again.has(row.deviceId) ? { ...row, measured: null, tries: row.tries + 1 } : row)), promote: false };
  }
  if (unclear.length > 0 || (gated && judged.length === 0 && rows.some((row) => inStage(running, row)))) {
    const told = unclear.slice(0, 3).map((row) => `${row.deviceId}: ${text(row.findings)}`).join('; ') || 'no device of the stage could be judged';
    return { rollout: { ...rollout, state: 'inconclusive', reason: `stage ${rollout.stage}: ${told}` }, rows, promote: false };
  }
  // A stage may have lost all of its devices to newer changes.
  const next = Math.min(...rows.filter((row) => row.stage > rollout.stage && !isTaken(row)).map((row) => row.stage));
  if (Number.isFinite(next)) return { rollout: enter(rollout, next, view), rows, promote: false };
  return { rollout: { ...rollout, state: 'done', reason: '' }, rows, promote: true };
}

function text(findings: readonly Finding[]): string {
  return findings.filter((finding) => finding.verdict === 'unclear').map((finding) => `${finding.gate} is unclear: ${finding.text}`).join(', ');
}

/** Asks for the first time, takes what has come, or asks again where it has failed. */
function takeAnswer(row: StagedRow, answer: MeasureAnswer | null, take: (result: Extract<MeasureAnswer, { t: 'measured' }>['result']) => StagedRow): StagedRow {
  if (row.tries === 0) return { ...row, tries: 1 };
  if (!answer) return row;
  return answer.t === 'measured' ? take(answer.result) : { ...row, tries: row.tries + 1, reason: `measurement failed: ${answer.reason}` };
}

function measuredOf(result: Extract<MeasureAnswer, { t: 'measured' }>['result']): Measured {
  const seconds = Number(result.decodeNs) / 1e9;
  return {
    windows: result.windowCrossEntropy, windowsLambdaZero: result.windowCrossEntropyLambdaZero,
    windowTokens: result.windowCrossEntropy.length > 0 ? Math.round(result.textTokens / result.windowCrossEntropy.length) : 0,
    missRate: result.textMissRate ?? null, swapRate: result.textSwapRate ?? null,
    tokensPerSecond: seconds > 0 ? Number(result.decodeTokens) / seconds : null,
  };
}

function lastGoodOf(device: DeviceRecord | null): LastGood {
  const { desired } = device ?? {};
  return {
    spec: desired?.t === 'set' ? desired.spec.toString('base64') : '', hash: desired?.t === 'set' ? desired.hash : '',
    bootId: device?.bootId ?? '', requestsFailed: Number(device?.telemetry?.requestsFailed ?? 0n), hostCrashes: device?.info?.model?.hostCrashes ?? 0,
  };
}

/** Both counters begin anew with a boot. */
function errorsSince(before: LastGood | null, device: DeviceRecord | null): number {
  if (!before || !device) return 0;
  const same = before.bootId === device.bootId;
  const since = (now: number, then: number) => Math.max(0, now - (same ? then : 0));
  return since(Number(device.telemetry?.requestsFailed ?? 0n), before.requestsFailed) + since(device.info?.model?.hostCrashes ?? 0, before.hostCrashes);
}

/** The value is void by now; each device that had it is followed until it runs what the layers give it. */
function stepBack(rollout: StagedRollout, before: readonly StagedRow[], view: StepView): Step {
  const late = view.nowMs >= rollout.phaseSinceMs + rollout.deadlineMs;
  const rows = before.map((row) => {
    if (wantsMark(row) && row.lastGood) return { ...row, state: 'reverting' as const, reason: '' };
    return row.state === 'reverting' ? judgeBack(row, view.sights.get(row.deviceId), late) : row;
  });
  if (rows.some((row) => row.state === 'reverting')) return { rollout, rows, promote: false };
  return { rollout: { ...rollout, state: rollout.endsAs }, rows, promote: false };
}

function judgeBack(row: StagedRow, sight: Sight | undefined, late: boolean): StagedRow {
  const device = sight?.device;
  if (!device) return { ...row, state: 'reverted', reason: 'the registry no longer knows the device' };
  const { desired } = device;
  const generation = desired.t === 'none' ? 0 : Number(desired.generation);
  const inLine = desired.t === 'set' ? desired.hash === sight.wantedHash : sight.wantsNothing;
  if (inLine && !device.lease) return { ...row, state: 'reverted', generation, reason: 'not connected; it gets its last good spec when it comes back' };
  if (inLine && (desired.t !== 'set' || runs(device, desired.hash, generation))) {
    const same = desired.t !== 'set' || desired.hash === row.lastGood?.hash || row.lastGood?.hash === '';
    return { ...row, state: 'reverted', generation, reason: same ? 'runs its last good spec again' : 'runs what its layers say, which have changed since' };
  }
  const { reported } = device;
  if (inLine && desired.t === 'set' && speaksOf(reported, desired.generation, desired.hash) && reported.state === SpecState.SPEC_STATE_FAILED) {
    return { ...row, state: 'reverted', generation, reason: `the device refused it: ${reported.reason || 'it gave no reason'}; it keeps what it ran last` };
  }
  return late ? { ...row, state: 'reverted', reason: 'it has not confirmed its last good spec by the deadline' } : row;
}
