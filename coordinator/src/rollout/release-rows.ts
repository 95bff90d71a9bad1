/**
 * A newer change takes devices out of a rollout of the learner's, in which each device has a value of its own: only their
 * rows end, and it goes on with the others and is judged on them. A row that was taken is `leaving` until a step has
 * taken the rollout's mark off its device: steps run one at a time, so none that began before can put it back after that.
 *
 * A stage that loses all of its devices gets as many of the next in their place: what was to be tried on few is not on
 * that account tried on all.
 */
import { isTaken, type StagedRollout, type StagedRow } from '../registry/staged-rollout';
import { needsBaseline, parseGates } from './gate';
import { takeBack } from './rollout-step';

interface Released { readonly rollout: StagedRollout; readonly rows: readonly StagedRow[] }

/** Of the rows, those that have changed; the same rollout where none of these devices is in it. It must not have ended. */
export function releaseRows(rollout: StagedRollout, rows: readonly StagedRow[], deviceIds: ReadonlySet<string>, by: string, nowMs: number): Released {
  const lost = rows.filter((row) => row.stage > 0 && !isTaken(row) && deviceIds.has(row.deviceId));
  if (lost.length === 0) return { rollout, rows: [] };
  const taken = lost.map((row): StagedRow => ({ ...row, state: 'leaving', reason: `superseded by ${by}` }));
  const left = rows.filter((row) => row.stage > 0 && !isTaken(row) && !lost.includes(row));
  if (left.length === 0) return { rollout: takeBack(rollout, `superseded by ${by}`, nowMs, 'superseded'), rows: taken };
  const heirs = heirsOf(rollout.stage, lost, left);
  return { rollout: goesOn(rollout, left, heirs.length > 0, nowMs), rows: [...taken, ...heirs] };
}

/** The rows that take the places of a stage which has none left. */
function heirsOf(stage: number, lost: readonly StagedRow[], left: readonly StagedRow[]): StagedRow[] {
  if (left.some((row) => row.stage === stage)) return [];
  const later = left.filter((row) => row.stage > stage).sort((a, b) => a.stage - b.stage || (a.deviceId < b.deviceId ? -1 : 1));
  return later.slice(0, lost.filter((row) => row.stage === stage).length).map((row) => ({ ...row, stage }));
}

/** A stage of new devices begins anew; a hold ends with the last device on whose account it was. */
function goesOn(rollout: StagedRollout, left: readonly StagedRow[], anew: boolean, nowMs: number): StagedRollout {
  const unclear = left.some((row) => row.stage === rollout.stage && row.findings.some(({ verdict }) => verdict === 'unclear'));
  const state = rollout.state === 'inconclusive' && !unclear ? { state: 'running' as const, reason: '', phaseSinceMs: nowMs } : {};
  const phase = anew ? { phase: needsBaseline(parseGates(rollout.gates.join(','))) ? 'baseline' as const : 'applying' as const, phaseSinceMs: nowMs } : {};
  return { ...rollout, ...state, ...phase };
}
