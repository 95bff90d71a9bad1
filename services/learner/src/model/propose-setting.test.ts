import { Routing } from '@moefleet/proto';
import fc from 'fast-check';
import { equallyFast, type ProposalInputs, proposeSetting, type SettingDecision, within } from './propose-setting';
import { QualitySurface } from './quality-surface';
import type { Setting } from './setting';
import type { SpeedPosterior } from './speed-model';
import { domain, point, SHAPE, trueMissRate } from './testing/synthetic';

const surface = new QualitySurface([domain('a')], SHAPE);
const speed: SpeedPosterior = { mean: [20, 5], covariance: [0.1, 0, 0.01] };
const setting = (lambda: number, topJ = 1, capacity = 16): Setting => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ, capacities: [capacity, capacity] });

const GIVEN: ProposalInputs = {
  shape: SHAPE, surface, speed, budget: { meanNats: Math.log1p(0.01), worstNats: Math.log1p(0.02) }, capacities: [[16, 16]], maxLambda: 1,
  current: null, observed: [], history: [],
};

function decide(changed: Partial<ProposalInputs> = {}): SettingDecision {
  const decision = proposeSetting({ ...GIVEN, ...changed });
  if (decision.t === 'frozen') throw new Error(decision.reason);
  return decision;
}

test('takes the fastest setting whose upper bound is within the budget, and says what bound it', () => {
  const { chosen, baseline, boundBy } = decide();
  expect(chosen.quality.loss.upper).toBeLessThanOrEqual(GIVEN.budget.meanNats);
  expect(chosen.speed!.tokensPerSecond).toBeGreaterThan(baseline.speed!.tokensPerSecond);
  expect(boundBy).toMatchObject({ t: 'budget', which: 'mean' });
  const harder = decide({ budget: { meanNats: 0.001, worstNats: 0.002 } });
  expect(harder.chosen.setting.lambda).toBeLessThan(chosen.setting.lambda);
});

test('keeps the worst domain within its own budget', () => {
  const domains = ['a', 'b', 'c', 'd', 'e', 'f'].map((name) => domain(name, { harder: name === 'f' ? 4 : 0.5 }));
  const { chosen, boundBy } = decide({ surface: new QualitySurface(domains, SHAPE), budget: { meanNats: 0.02, worstNats: 0.015 } });
  expect(chosen.quality.worst).toMatchObject({ domain: 'f' });
  expect(chosen.quality.worst.upper).toBeLessThanOrEqual(0.015);
  expect(boundBy).toMatchObject({ t: 'budget', which: 'worst', domain: 'f' });
});

test('stays below the λ the device allows, and says so', () => {
  const { chosen, boundBy } = decide({ maxLambda: 0.1 });
  expect(chosen.setting.lambda).toBeLessThanOrEqual(0.1);
  expect(boundBy).toMatchObject({ t: 'maxLambda', maxLambda: 0.1 });
});

test('a device that loses more than the texts is held to less λ and less mass, at once, and that is said', () => {
  const free = decide();
  const hold = { lambda: free.chosen.setting.lambda / 2, mostMassLost: free.chosen.quality.mostMassLost, factor: 2 };
  const { chosen, boundBy, why } = decide({ hold, current: free.chosen.setting });
  expect(chosen.setting.lambda).toBeLessThanOrEqual(hold.lambda);
  expect(chosen.quality.mostMassLost * hold.factor).toBeLessThanOrEqual(hold.mostMassLost);
  expect({ why, boundBy }).toMatchObject({ why: 'best', boundBy: { t: 'drift', hold } });
  expect(decide({ hold: { ...hold, factor: 1e6 } }).chosen.setting.lambda).toBe(0);
});

describe('among routings', () => {
  const { ROUTING_MAX_RANK } = Routing;
  /** Half of the misses of λ 0.2 for as much quality. */
  const better = new QualitySurface([{ domain: 'a', points: [...domain('a').points, ...[8, 16, 24].map((capacity) => point(0.5, 1, capacity, { routing: ROUTING_MAX_RANK, loss: 0.003, missRate: trueMissRate(0.2, 1, capacity) / 2 }))] }], SHAPE);

  test('takes the fastest that fits, and leaves it on a device that allows less than its all', () => {
    const { chosen, baseline } = decide({ surface: better });
    expect(chosen.setting).toMatchObject({ routing: ROUTING_MAX_RANK, topJ: 1 });
    expect(baseline.setting).toMatchObject({ routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0 });
    const bounded = decide({ surface: better, maxLambda: 0.99 });
    expect(bounded.chosen.setting.routing).toBe(Routing.ROUTING_CACHE_PRIOR);
    expect(bounded.boundBy).toMatchObject({ t: 'maxLambda', next: { setting: { routing: ROUTING_MAX_RANK } } });
  });

  test('a hold bounds the strength of its own routing, and the mass lost of all', () => {
    const hold = { lambda: 0.1, mostMassLost: 0.05, factor: 1, seenRouting: ROUTING_MAX_RANK };
    const held = decide({ surface: better, hold }).chosen;
    expect(held.setting.routing === ROUTING_MAX_RANK ? held.setting.lambda : 0).toBeLessThanOrEqual(0.1);
    expect(held.setting.lambda).toBeGreaterThan(0.1);
    expect(held.quality.mostMassLost).toBeLessThanOrEqual(0.05);
  });
});

test('bends no further than it pays: with reads that cost next to nothing the model routes as it would', () => {
  const { chosen, boundBy } = decide({ speed: { mean: [20, 0.01], covariance: [0.1, 0, 0.01] } });
  expect(chosen.setting.lambda).toBe(0);
  expect(boundBy.t).toBe('speed');
});

test('without any knowledge of speed takes the fewest misses', () => {
  const { chosen } = decide({ speed: null });
  expect(chosen.speed).toBeNull();
  expect(chosen.missRate).toBeLessThanOrEqual(decide().chosen.missRate + 1e-12);
});

test('proposes λ 0 where nothing fits the budget, and where every expert is resident', () => {
  expect(decide({ budget: { meanNats: 1e-9, worstNats: 1e-9 } }).chosen.setting.lambda).toBe(0);
  expect(decide({ capacities: [[32, 32]] })).toMatchObject({ chosen: { setting: { lambda: 0 } }, boundBy: { t: 'resident' } });
});

test('of two cache sizes takes the one that is faster', () => {
  expect(decide({ capacities: [[12, 12], [20, 20]] }).chosen.setting.capacities).toEqual([20, 20]);
});

test('keeps what runs until something is clearly faster, and leaves it at once where it is beyond the budget', () => {
  const { chosen } = decide();
  const near = setting(Math.round((chosen.setting.lambda - 0.01) * 100) / 100, chosen.setting.topJ);
  expect(decide({ current: near })).toMatchObject({ why: 'kept', chosen: { setting: near } });
  expect(decide({ current: setting(0.02, 2) })).toMatchObject({ why: 'best', chosen: { setting: chosen.setting } });
  expect(decide({ current: setting(0.4, 1) })).toMatchObject({ why: 'best', chosen: { setting: chosen.setting } });
});

test('goes back to what was faster where a change has disappointed, and does not try it again', () => {
  const { chosen } = decide();
  const outcome = (of: Setting, observedTokensPerSecond: number) => ({ setting: of, sinceMs: 0, predicted: { tokensPerSecond: 30, sd: 2 }, observedTokensPerSecond, windows: 5 });
  const before = setting(0.1);
  const disappointed = { current: chosen.setting, history: [outcome(before, 30), outcome(chosen.setting, 25)], noise: 0.02 ** 2 };
  expect(decide(disappointed)).toMatchObject({ why: 'undone', chosen: { setting: before } });
  // Where single windows vary that much, five of them tell nothing.
  expect(decide({ ...disappointed, noise: 0.2 ** 2 }).why).toBe('kept');
  expect(decide({ ...disappointed, history: [disappointed.history[0]!, { ...disappointed.history[1]!, drifted: true }] }).why).toBe('kept');
  const again = decide({ current: before, history: [outcome(before, 30), { ...outcome(chosen.setting, 25), undone: true }, outcome(before, 30)] });
  expect(again.chosen.setting).not.toEqual(chosen.setting);
});

test('names the best of another topJ: slower, or as fast and dearer', () => {
  const { chosen, runnerUp } = decide();
  expect(runnerUp!.setting.topJ).not.toBe(chosen.setting.topJ);
  expect(runnerUp!.setting.capacities).toBe(chosen.setting.capacities);
  expect(within(runnerUp!.quality, GIVEN.budget)).toBe(true);
  expect(!equallyFast(runnerUp!, chosen) || runnerUp!.quality.loss.upper >= chosen.quality.loss.upper).toBe(true);
});

test('explores only where less is lost', () => {
  const { chosen, best, why } = decide({ explore: true });
  expect(why).toBe('exploring');
  expect(chosen.quality.loss.upper).toBeLessThanOrEqual(best.quality.loss.upper);
  expect(chosen.missRate).toBeGreaterThan(best.missRate * 1.2);
});

test('takes what a device was seen to miss into account, as far as it was seen', () => {
  const said = trueMissRate(0, 1, 16);
  const observed = (slots: number) => [{ setting: setting(0), slots, misses: slots * said * 1.5 }];
  const alone = decide();
  const little = decide({ observed: observed(100) });
  const much = decide({ observed: observed(1e6) });
  expect(alone.baseline.missRate).toBeCloseTo(said, 6);
  expect(little.baseline.missRate / said).toBeGreaterThan(1);
  expect(little.baseline.missRate / said).toBeLessThan(1.3);
  expect(much.baseline.missRate / said).toBeCloseTo(1.5, 2);
  // The less a setting misses on the texts, the more of what it misses on the device is for want of what the answer before did not need.
  expect(much.chosen.missRate / much.chosen.quality.missRate).toBeGreaterThan(1.5);
  expect(much.baseline.speed!.msPerToken).toBeGreaterThan(alone.baseline.speed!.msPerToken);
});

test('is as sure of a speed as of the misses that it rests on', () => {
  const observed = (slots: number) => [{ setting: setting(0), slots, misses: slots * trueMissRate(0, 1, 16) }];
  const share = ({ baseline }: SettingDecision) => baseline.speed!.sd / baseline.speed!.tokensPerSecond;
  expect(share(decide({ observed: observed(1e6) }))).toBeLessThan(share(decide({ observed: observed(2000) })));
  expect(share(decide({ observed: observed(2000) }))).toBeLessThan(share(decide()));
});

test.each([
  ['quarantined telemetry', { quarantined: 'layer 0: massLost is NaN' }, /not believed: layer 0: massLost is NaN/],
  ['a cache that was not measured', { capacities: [[7, 7]] }, /not been measured at so small a cache/],
  ['a cache below one token', { capacities: [] }, /less than one token/],
  ['no surface', { surface: new QualitySurface([], SHAPE) }, /not been measured/],
])('proposes nothing with %s, and says why', (_, changed, reason) => {
  const decision = proposeSetting({ ...GIVEN, ...changed });
  expect(decision.t).toBe('frozen');
  if (decision.t === 'frozen') expect(decision.reason).toMatch(reason);
});

test('whatever was measured, what is proposed is within both budgets or λ 0', () => {
  const measured = fc.array(fc.tuple(fc.double({ min: -0.01, max: 0.05, noNaN: true }), fc.double({ min: 0, max: 0.01, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })), { minLength: 8, maxLength: 8 });
  fc.assert(fc.property(fc.array(measured, { minLength: 1, maxLength: 3 }), fc.double({ min: 0.0001, max: 0.03, noNaN: true }), fc.double({ min: 0, max: 20, noNaN: true }), (domains, meanNats, reading) => {
    const made = new QualitySurface(domains.map((rows, d) => ({
      domain: `d${d}`, points: [point(0, 0, 16), ...rows.map(([loss, stderr, missRate], i) => point(((i % 4) + 1) / 10, i < 4 ? 1 : 2, 16, { loss, stderr, missRate }))],
    })), SHAPE);
    const budget = { meanNats, worstNats: 1.5 * meanNats };
    const { chosen } = decide({ surface: made, budget, speed: { mean: [10, reading], covariance: [0.1, 0, 0.1] } });
    if (chosen.setting.lambda === 0) return;
    expect(chosen.quality.loss.upper).toBeLessThanOrEqual(budget.meanNats);
    expect(chosen.quality.worst.upper).toBeLessThanOrEqual(budget.worstNats);
  }));
});
