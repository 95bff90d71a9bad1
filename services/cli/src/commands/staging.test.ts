import { PlanRolloutResponse, StagedRollout, StagedRollout_State as State } from '@moefleet/proto';
import { planText, stagedExitCode, stagedText } from '../staged-rollout-view';
import { durationMs, readStaging } from './staging';

test.each([['60s', 60_000], ['10m', 600_000], ['2h', 7_200_000], ['500ms', 500], ['1.5', 1500]])('reads %s', (text, ms) => {
  expect(durationMs(text)).toBe(ms);
});

test.each(['soon', '-1s', '8d', '', '9999h'])('refuses %s', (text) => {
  expect(() => durationMs(text)).toThrow(/Write a number/);
});

test('any of the flags makes a rollout of a change; --now and they exclude each other', () => {
  expect(readStaging({ why: 'x' })).toBeNull();
  expect(readStaging({ plan: true })).toMatchObject({ stages: '', soakMs: 0, gate: '' });
  expect(readStaging({ stages: '1,100%', soak: 1000, maxUnavailable: 2 })).toMatchObject({ stages: '1,100%', soakMs: 1000, maxUnavailable: 2 });
  expect(() => readStaging({ now: true, maxUnavailable: 2 })).toThrow('--now and --max-unavailable exclude each other');
});

test('a plan says that nothing has been changed, and why a device would not change', () => {
  const text = planText(PlanRolloutResponse.fromPartial({
    what: 'lambda 0.2 on all devices', stages: ['1 (1)', '100% (2)'], supersedes: ['ro-1'],
    devices: [{ deviceId: 'a', online: true, stage: 1, before: 'λ 0.1', after: 'λ 0.2' }, { deviceId: 'b', before: 'λ 0.4', after: 'λ 0.4', unchanged: 'the device pin stands' }],
  }));
  expect(text).toMatch(/nothing has been changed[^]*supersedes +ro-1[^]*a +yes +1 +λ 0\.1 +λ 0\.2\nb +no +- +λ 0\.4 +λ 0\.4 +the device pin stands/);
});

test('only a rollout that is done exits with 0, and with 3 where offline devices are missing', () => {
  const rollout = (state: State, ...states: string[]) => StagedRollout.fromPartial({ state, devices: states.map((one) => ({ deviceId: one, state: one })) });
  expect(stagedExitCode(rollout(State.STATE_DONE, 'applied'))).toBe(0);
  expect(stagedExitCode(rollout(State.STATE_DONE, 'applied', 'offline'))).toBe(3);
  for (const state of [State.STATE_ROLLED_BACK, State.STATE_INCONCLUSIVE, State.STATE_PAUSED, State.STATE_SUPERSEDED]) expect(stagedExitCode(rollout(state))).toBe(1);
});

test('shows each device and what each gate has found', () => {
  const text = stagedText(StagedRollout.fromPartial({
    id: 'ro-1', what: 'lambda 1', who: 'ada', state: State.STATE_ROLLED_BACK, reason: 'stage 1: a', stage: 1, phase: 'judging', stages: [{ asked: '1', devices: 1 }], gates: ['errors==0'],
    devices: [{ deviceId: 'a', stage: 1, state: 'reverted', generation: 4n, lastGoodHash: 'ab'.repeat(32), findings: [{ gate: 'errors==0', verdict: 'fail', text: 'errors 2, limit == 0' }] }],
  }));
  expect(text).toMatch(/state +ROLLED_BACK: stage 1: a[^]*a +1 +REVERTED +4 +abababababab[^]*a +errors==0 +FAIL +errors 2, limit == 0/);
});
