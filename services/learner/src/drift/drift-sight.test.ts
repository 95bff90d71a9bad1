import { type Device, DeviceKnowledge, DeviceUse, DriftKnowledge, Routing, ValueSource, ValueSource_Layer } from '@moefleet/proto';
import { QualitySurface } from '../model';
import { domain, SHAPE, speedWindow } from '../model/testing/synthetic';
import { learnableDevice } from '../testing/learnable-device';
import { judgeDrift, withWindow } from './drift-sight';
import { useBits } from './use-bits';

/** Mass lost is a tenth of λ, of each text alike. */
const surface = new QualitySurface([domain('wiki')], SHAPE);
const setting = (lambda: number) => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ: 1, capacities: [16, 16] });
const layers = [{ hits: 900, misses: 100, swaps: 50, capacity: 16 }, { hits: 800, misses: 200, swaps: 0, capacity: 16 }];
const window = (massLost: number, tokens = 2048) => ({ ...speedWindow({ tokens }), massLost, layers });
const sources = [ValueSource.fromPartial({ field: 'lambda', layer: ValueSource_Layer.LAYER_LEARNER })];
const device: Device = { ...learnableDevice('a'), sources };
const HOUR = 3_600_000;

function known(lambda: number, drift: DriftKnowledge): DeviceKnowledge {
  return DeviceKnowledge.fromPartial({ deviceId: 'a', modelHash: 'model-a', outcomes: [{ ...setting(lambda), windows: 1n }], drift });
}

const judge = (lambda: number, drift: DriftKnowledge, { at = 0, by = device, on = surface } = {}) => judgeDrift(by, known(lambda, drift), on, undefined, at)!;

test('windows under one setting add up and are forgotten by half; under another it begins anew, and a hold stays', () => {
  const two = withWindow(withWindow(undefined, false, window(0.01)), true, window(0.03));
  expect(two).toMatchObject({ tokens: 3072, windows: [{ slots: 2000n, misses: 300n, swaps: 50n }, {}] });
  expect(two.massLost).toBeCloseTo(0.07 / 3, 9);
  let many = two;
  for (let i = 0; i < 20; i += 1) many = withWindow(many, true, window(0.01));
  expect(many.windows).toHaveLength(12);
  const hold = { ...DriftKnowledge.fromPartial({ hold: { lambda: 0.1 } }).hold! };
  expect(withWindow({ ...two, hold }, false, window(0.02, 100))).toMatchObject({ tokens: 100, massLost: 0.02, windows: [{}], hold });
});

test('a device that loses as the texts do is left alone, one that loses twice as much is held to half of it', () => {
  expect(judge(0.3, withWindow(undefined, false, window(0.033)))).toMatchObject({ causes: [], hold: undefined, leastMeasured: expect.closeTo(0.03, 9), mostMeasured: expect.closeTo(0.03, 9) });
  const { hold } = judge(0.3, withWindow(undefined, false, window(0.06)), { at: HOUR });
  expect(hold).toMatchObject({ lambda: 0.15, factor: expect.closeTo(2, 9), seenLambda: 0.3, seenTopJ: 1, seenCapacities: [16, 16], sinceMs: BigInt(HOUR), untilMs: BigInt(7 * HOUR), measuredAnew: false });
});

test('an operator\'s λ is told of, and left', () => {
  const told = judge(0.3, withWindow(undefined, false, window(0.06)), { by: { ...device, sources: [] } });
  expect(told).toMatchObject({ hold: undefined, reason: expect.stringMatching(/0.0600 of softmax mass is lost/) });
});

test('a hold waits until the device has it, tightens where that is not enough, and ends when the device loses as the texts do, or in time', () => {
  const held = judge(0.3, withWindow(undefined, false, window(0.06)), { at: 1 });
  expect(judge(0.3, withWindow(held, true, window(0.06)), { at: 2 }).hold).toEqual(held.hold);
  // The same factor at half the λ is what it was held to.
  expect(judge(0.15, withWindow(held, false, window(0.03)), { at: 3 }).hold).toEqual(held.hold);
  expect(judge(0.15, withWindow(held, false, window(0.06)), { at: 4 }).hold).toMatchObject({ lambda: 0.07, mostMassLost: held.hold!.mostMassLost, seenLambda: 0.15 });
  expect(judge(0.15, withWindow(held, false, window(0.014)), { at: 5 }).hold).toBeUndefined();
  expect(judge(0.15, withWindow(held, false, window(0.014, 500)), { at: 5 }).hold).toEqual(held.hold);
  expect(judge(0.15, withWindow(held, false, window(0.03)), { at: 1 + 6 * HOUR }).hold).toBeUndefined();
});

test('a hold ends where the setting, measured anew, is found to lose as much', () => {
  const held = judge(0.3, withWindow(undefined, false, window(0.06)), { at: 1 });
  const anew = { ...held, hold: { ...held.hold!, measuredAnew: true } };
  expect(judge(0.3, anew, { at: 2 }).hold).toEqual(anew.hold);
  const lossy = domain('other');
  const wider = new QualitySurface([domain('wiki'), { ...lossy, points: lossy.points.map((point) => ({ ...point, massLost: 2 * point.massLost })) }], SHAPE);
  expect(judge(0.3, anew, { at: 2, on: wider }).hold).toBeUndefined();
});

test('reports of the setting in force say whether the workload or λ has moved the use of experts, and stay until the next', () => {
  const sight = (wanted: number[], chosen: number[] = []) => ({ tokens: 2000, entropyBits: [], layers: [{ wanted, chosen }, { wanted, chosen }] });
  const use = (over: object) => useBits(DeviceUse.fromPartial({ deviceId: 'a', experts: 4, lambda: 0.2, topJ: 1, timeMs: 9n, reference: sight([10, 10]), now: sight([10, 10], [10, 10]), ...over }));
  const drift = withWindow(undefined, false, window(0.01));
  const judgedWith = (bits: ReturnType<typeof useBits>, before = drift) => judgeDrift(device, known(0.2, before), surface, bits, 7)!;
  expect(judgedWith(use({})).causes).toEqual([]);
  const moved = judgedWith(use({ now: sight([0, 0, 10, 10], [0, 0, 10, 10]) }));
  expect(moved).toMatchObject({ causes: ['workload'], sinceMs: 7n, useMs: 9n, lambdaBits: [0, 0] });
  expect(moved.workloadBits[0]).toBeGreaterThan(0.9);
  expect(judgeDrift(device, known(0.2, moved), surface, undefined, 8)).toMatchObject({ causes: ['workload'], sinceMs: 7n });
  expect(judgedWith(use({ now: sight([10, 10], [0, 0, 10, 10]) })).causes).toEqual(['lambda']);
  expect(judgedWith(use({ lambda: 0.1, now: sight([0, 0, 10, 10]) })).workloadBits).toEqual([]);
});

test('another model is named until what was chosen for it is in force; telemetry that is not believed says nothing', () => {
  const drift = DriftKnowledge.fromPartial({ earlierModel: 'model-z' });
  expect(judgeDrift(device, DeviceKnowledge.fromPartial({ modelHash: 'model-a', drift }), surface, undefined, 1)).toMatchObject({ causes: ['model'], hold: undefined });
  const ours = { ...known(0.2, withWindow(drift, false, window(0.01))), choice: DeviceKnowledge.fromPartial({ choice: { chosen: setting(0.2) } }).choice };
  expect(judgeDrift(device, ours, surface, undefined, 1)).toMatchObject({ causes: [], earlierModel: '' });
  const lying = { ...known(0.3, withWindow(undefined, false, window(0.9))), quarantine: DeviceKnowledge.fromPartial({ quarantine: { reason: 'x' } }).quarantine };
  expect(judgeDrift(device, lying, surface, undefined, 1)).toBe(lying.drift);
});
