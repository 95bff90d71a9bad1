import { type Device, DeviceSpec, type QualitySurface, Reported, Routing, type SurfacePoint, ValueSource_Layer } from '@moefleet/proto';
import { proposeConfig } from './proposal';
import { emptySurface } from './quality-surface';
import { learnableDevice } from './testing/learnable-device';

const BUDGET = { nats: Math.log1p(0.01) };

function point(lambda: number, topJ: number, missRate: number, loss: number, stderr = 0.0005, capacity = 16): SurfacePoint {
  return {
    lambda, topJ, routing: Routing.ROUTING_CACHE_PRIOR, capacities: [capacity, capacity], crossEntropyLoss: loss, crossEntropyLossStderr: stderr,
    missRate, swapRate: 0.1, massLost: 0.01,
  };
}

function surface(...points: SurfacePoint[]): QualitySurface {
  return { ...emptySurface({ modelHash: 'model-a', textHash: 'text-a', tokens: 4096, context: 256 }), points };
}

const MEASURED = surface(
  point(0, 0, 0.3, 0, 0),
  point(0.1, 2, 0.2, 0.002), point(0.2, 2, 0.12, 0.006), point(0.3, 2, 0.09, 0.0092, 0.0012),
  point(0.1, 1, 0.15, 0.004), point(0.2, 1, 0.1, 0.011),
);

function propose(device: Device, at: QualitySurface | null = MEASURED, budget = BUDGET) {
  return proposeConfig(at, device, budget, 1234);
}

test('takes the fewest misses whose loss, one standard error up, is within the budget, and says what bound it', () => {
  const proposal = propose(learnableDevice('a'));
  expect(proposal).toMatchObject({
    proposed: true, deviceId: 'a', modelHash: 'model-a', textHash: 'text-a', timeMs: 1234n, lambda: 0.2, topJ: 2, capacities: [16, 16],
    predictedMissRate: 0.12, baselineMissRate: 0.3, predictedCrossEntropyLoss: 0.006,
  });
  // λ 0.3 topJ 2 costs 0.0092 on average, inside the budget of 0.00995, but 0.0104 at its upper bound.
  expect(proposal.reason).toMatch(/λ 0.2 topJ 2 at capacity 16.*12.0% of slots miss instead of 30.0%/);
  expect(proposal.reason).toMatch(/bound by the budget: λ 0.3 topJ 2 would miss 9.0% but may cost \+1.05%/);
});

test.each([
  ['a smaller budget', { nats: 0.003 }, { lambda: 0.1, topJ: 2 }],
  ['a larger budget', { nats: 0.1 }, { lambda: 0.3, topJ: 2 }],
  ['a budget that nothing fits', { nats: 0.0001 }, { lambda: 0, topJ: 2 }],
])('moves with %s', (_, budget, expected) => {
  expect(propose(learnableDevice('a'), MEASURED, budget)).toMatchObject({ ...expected, proposed: true });
});

test('stays below the λ the device itself allows, and says so', () => {
  const proposal = propose(learnableDevice('a', { maxLambda: 0.1 }));
  expect(proposal).toMatchObject({ lambda: 0.1, topJ: 1, proposed: true });
  expect(proposal.reason).toContain('bound by the device\'s own limit of λ 0.1');
});

test('of equal misses takes the smaller loss', () => {
  expect(propose(learnableDevice('a'), surface(point(0, 0, 0.3, 0, 0), point(0.1, 1, 0.1, 0.005), point(0.2, 3, 0.1, 0.001)))).toMatchObject({ lambda: 0.2, topJ: 3 });
});

test('takes what was measured at the cache in force where an operator has pinned it, not at the limit', () => {
  const pinned: Device = {
    ...learnableDevice('a'),
    reported: Reported.fromPartial({ effective: { capacities: [8, 8] } }),
    sources: [{ field: 'cache_bytes', layer: ValueSource_Layer.LAYER_FLEET_PIN, detail: '' }],
  };
  const proposal = propose(pinned, surface(...MEASURED.points, point(0, 0, 0.5, 0, 0, 8), point(0.1, 2, 0.4, 0.008, 0.0005, 8), point(0.2, 2, 0.3, 0.02, 0.0005, 8)));
  expect(proposal).toMatchObject({ proposed: true, lambda: 0.1, capacities: [8, 8], baselineMissRate: 0.5, predictedCrossEntropyLoss: 0.008 });
  expect(proposal.reason).toContain('at capacity 8 (pinned by an operator)');
  expect(propose(pinned).reason).toContain('not been measured at capacity 8 yet');
});

test.each([
  ['no model is loaded', learnableDevice('a', { modelHash: '' }), MEASURED],
  ['not been measured', learnableDevice('a'), null],
  ['runs model model-b, the learner measures model-a', learnableDevice('a', { modelHash: 'model-b' }), MEASURED],
  ['has not told what its cache limit holds', learnableDevice('a', { maxCapacities: [] }), MEASURED],
  ['holds 3 experts of a layer, a token needs 4', learnableDevice('a', { maxCapacities: [16, 3] }), MEASURED],
  ['not been measured at capacity 8 yet', learnableDevice('a', { maxCapacities: [8, 8] }), MEASURED],
  ['not been measured at capacity 16 yet', learnableDevice('a'), surface(point(0.1, 2, 0.2, 0.002))],
])('proposes nothing where "%s", and invents no figure', (reason, device, at) => {
  const proposal = propose(device, at);
  expect(proposal.reason).toContain(reason);
  expect(proposal).toMatchObject({ proposed: false, lambda: 0, predictedMissRate: 0, predictedCrossEntropyLoss: 0, baselineMissRate: 0, capacities: [] });
});

describe('a device that runs a proposal already', () => {
  const running = (lambda: number, layer = ValueSource_Layer.LAYER_LEARNER): Device => ({
    ...learnableDevice('a'),
    desired: DeviceSpec.fromPartial({ lambda, topJ: 2, routing: 2, cache: { $case: 'capacities', value: { experts: [16, 16] } }, modelHash: 'model-a' }),
    sources: [{ field: 'lambda', layer, detail: '' }],
  });
  const close = surface(point(0, 0, 0.3, 0, 0), point(0.1, 2, 0.102, 0.002), point(0.2, 2, 0.1, 0.006));

  test('keeps it where the best saves less than a twentieth of its misses', () => {
    const proposal = propose(running(0.1), close);
    expect(proposal).toMatchObject({ lambda: 0.1, topJ: 2, predictedMissRate: 0.102 });
    expect(proposal.reason).toContain('kept, as λ 0.2 topJ 2 would save less than a twentieth');
  });

  test('leaves it where the best is clearly better', () => expect(propose(running(0.1))).toMatchObject({ lambda: 0.2, topJ: 2 }));

  test('leaves it where it is beyond the budget now', () => {
    expect(propose(running(0.2), close, { nats: 0.003 })).toMatchObject({ lambda: 0.1 });
  });

  test('does not mistake an operator\'s pin for its own', () => {
    expect(propose(running(0.1, ValueSource_Layer.LAYER_FLEET_PIN), close)).toMatchObject({ lambda: 0.2 });
  });
});

test('leaves a device alone that holds every expert', () => {
  const proposal = propose(learnableDevice('a', { maxCapacities: [32, 32] }), surface(point(0, 0, 0.01, 0, 0, 32)));
  expect(proposal).toMatchObject({ proposed: true, lambda: 0, predictedMissRate: 0.01 });
  expect(proposal.reason).toContain('every expert fits');
});
