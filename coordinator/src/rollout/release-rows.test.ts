import type { Finding, StagedRollout, StagedRow } from '../registry/staged-rollout';
import { releaseRows } from './release-rows';
import { type StepView, stepRollout, wantsMark } from './rollout-step';

const NOW = 5000;
const unclear: Finding = { gate: 'perplexityLoss<2%', verdict: 'unclear', value: null, low: null, high: null, limit: 0.02, windows: 8, text: '' };
const view: StepView = { sights: new Map(), gates: [], halted: null, nowMs: NOW };

function rollout(fields: Partial<StagedRollout> = {}): StagedRollout {
  return {
    id: 'ro-1', revision: 1, what: '', who: 'learner', why: '', createdMs: 0, updatedMs: 0, state: 'running', reason: '', endsAs: 'rolled_back', field: 'lambda', layer: { t: 'learner' }, pin: null,
    previousPin: null, stages: [{ asked: '1', devices: 1 }, { asked: '100%', devices: 4 }], gates: [], soakMs: 0, maxUnavailable: 0, deadlineMs: 600_000, stage: 1, phase: 'judging', phaseSinceMs: 0, ...fields,
  };
}

function row(deviceId: string, stage: number, fields: Partial<StagedRow> = {}): StagedRow {
  return { deviceId, stage, state: 'waiting', generation: 0, hash: '', reason: '', lastGood: null, baseline: null, measured: null, tries: 0, findings: [], ...fields };
}

/** After the release, as the store would hold it. */
function after(before: StagedRollout, rows: readonly StagedRow[], deviceIds: string[]) {
  const released = releaseRows(before, rows, new Set(deviceIds), 'a newer one', NOW);
  const changed = new Map(released.rows.map((one) => [one.deviceId, one]));
  return { rollout: released.rollout, rows: rows.map((one) => changed.get(one.deviceId) ?? one), changed };
}

test('takes the devices that it is told of and leaves the others as they are', () => {
  const applied = row('a', 1, { state: 'applied' });
  const { rollout: now, rows, changed } = after(rollout(), [applied, row('b', 1, { state: 'applied' }), row('c', 2)], ['b', 'elsewhere']);
  expect(now).toMatchObject({ state: 'running', stage: 1, phase: 'judging', phaseSinceMs: 0 });
  expect([...changed.keys()]).toEqual(['b']);
  expect(rows[1]).toMatchObject({ state: 'leaving', reason: 'superseded by a newer one' });
  expect(wantsMark(rows[1]!)).toBe(false);
});

test('nothing of it changes where none of the devices is in it, nor where they have been taken before', () => {
  const before = rollout();
  const rows = [row('a', 1), row('b', 0, { state: 'unchanged' }), row('c', 1, { state: 'superseded' })];
  expect(releaseRows(before, rows, new Set(['b', 'c', 'd']), 'a newer one', NOW)).toEqual({ rollout: before, rows: [] });
});

test('is superseded when none is left', () => {
  const { rollout: now, rows } = after(rollout({ state: 'paused' }), [row('a', 1, { state: 'superseded' }), row('b', 2), row('c', 0, { state: 'unchanged' })], ['b']);
  expect(now).toMatchObject({ state: 'rolling_back', endsAs: 'superseded', reason: 'superseded by a newer one' });
  expect(stepRollout(now, rows, view).rollout.state).toBe('superseded');
});

test('a stage without devices gets as many of the next, and begins anew', () => {
  const { rollout: now, rows } = after(rollout(), [row('a', 1, { state: 'applied' }), row('b', 2), row('c', 2)], ['a']);
  expect(now).toMatchObject({ state: 'running', stage: 1, phase: 'applying', phaseSinceMs: NOW });
  expect(rows.map(({ deviceId, stage, state }) => [deviceId, stage, state])).toEqual([['a', 1, 'leaving'], ['b', 1, 'waiting'], ['c', 2, 'waiting']]);
  expect(after(rollout({ gates: ['missRate<=baseline'] }), [row('a', 1), row('b', 2)], ['a']).rollout.phase).toBe('baseline');
});

test('a last stage whose devices are all taken ends it with those that have passed', () => {
  const { rollout: now, rows } = after(rollout({ stage: 2, gates: ['errors==0'] }), [row('a', 1, { state: 'applied' }), row('b', 2, { state: 'applied' })], ['b']);
  expect(now).toMatchObject({ state: 'running', stage: 2, phase: 'judging' });
  expect(stepRollout(now, rows, { ...view, gates: [{ metric: 'errors', text: 'errors==0' } as never] })).toMatchObject({ promote: true, rollout: { state: 'done' } });
});

test('a later stage that was emptied is passed over', () => {
  const three = rollout({ stages: [{ asked: '1', devices: 1 }, { asked: '2', devices: 2 }, { asked: '100%', devices: 3 }] });
  const { rollout: now, rows } = after(three, [row('a', 1, { state: 'applied' }), row('b', 2), row('c', 3)], ['b']);
  expect(stepRollout(now, rows, view).rollout).toMatchObject({ state: 'running', stage: 3, phase: 'applying' });
});

test('a device that has failed and is taken fails nothing any more', () => {
  const { rollout: now, rows } = after(rollout({ phase: 'applying' }), [row('a', 1, { state: 'failed' }), row('b', 1, { state: 'applied' })], ['a']);
  expect(stepRollout(now, rows, view).rollout).toMatchObject({ state: 'running', phase: 'judging' });
});

test('a hold ends with the device on whose account it was, and not with another', () => {
  const held = rollout({ state: 'inconclusive', reason: 'stage 1: a' });
  const rows = [row('a', 1, { state: 'applied', findings: [unclear] }), row('b', 1, { state: 'applied' })];
  expect(after(held, rows, ['a']).rollout).toMatchObject({ state: 'running', reason: '' });
  expect(after(held, rows, ['b']).rollout).toMatchObject({ state: 'inconclusive', reason: 'stage 1: a' });
});
