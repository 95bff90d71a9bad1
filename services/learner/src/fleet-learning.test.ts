import { type Device, DeviceKnowledge, DeviceSpec, type Proposal, Reported, ValueSource_Layer } from '@moefleet/proto';
import type { EvaluationSubject } from './evaluator';
import { lookAtAll, proposeAll, type Proposing, wantedCapacities, withPriors } from './fleet-learning';
import { emptyKnowledge, speedMessage } from './knowledge';
import { fitPrior, NO_EVIDENCE, observe, posterior, QualitySurface, VAGUE_PRIOR } from './model';
import { domain, SHAPE, speedWindow } from './model/testing/synthetic';
import { parseBudgetRules } from './quality-budget';
import { learnableDevice } from './testing/learnable-device';

const SUBJECT: EvaluationSubject = { modelName: 'a', modelHash: 'model-a', domains: [{ name: 'wiki', textHash: 'text-a' }], moeLayers: 2, experts: 32, topK: 4, expertBytes: [...SHAPE.expertBytes], engineVersion: 'e' };
const SURFACE = new QualitySurface([domain('wiki')], SHAPE);
const BUDGET = { meanNats: Math.log1p(0.01), worstNats: Math.log1p(0.02) };

function learn(devices: Device[], known: DeviceKnowledge[] = [], changed: Partial<Proposing> = {}) {
  const { learnt: seen, others } = lookAtAll(devices, new Map(known.map((one) => [one.deviceId, one])), SUBJECT, 1234);
  const { learnt, priors, unclear } = withPriors(seen);
  const made = proposeAll(learnt, { surface: SURFACE, subject: SUBJECT, priors, unclear, levels: [8, 16, 24], budget: BUDGET, budgetRules: [], nowMs: 1234, ...changed });
  return { ...made, proposals: [...made.proposals, ...others.map(({ proposal }) => proposal)] };
}

const propose = (device: Device, changed: Partial<Proposing> = {}): Proposal => learn([device], [], changed).proposals[0]!;

/** What a device has shown of its speed. */
function fast(id: string, truth: Parameters<typeof speedWindow>[0], deviceClass = ''): DeviceKnowledge {
  const evidence = Array.from({ length: 20 }).reduce<typeof NO_EVIDENCE>((known) => observe(known, speedWindow(truth), VAGUE_PRIOR), NO_EVIDENCE);
  return { ...emptyKnowledge(id, 'model-a', deviceClass), speed: speedMessage(evidence, VAGUE_PRIOR, posterior(evidence, VAGUE_PRIOR), { readNs: 0, readBytes: 0 }) };
}

test('without telemetry proposes the fewest misses that the budget allows, and says what bound it', () => {
  const proposal = propose(learnableDevice('a'));
  expect(proposal).toMatchObject({ proposed: true, deviceId: 'a', modelHash: 'model-a', textHash: 'text-a', timeMs: 1234n, capacities: [16, 16] });
  expect(proposal.lambda).toBeGreaterThan(0.1);
  expect(proposal.predictedMissRate).toBeLessThan(proposal.baselineMissRate / 1.5);
  expect(proposal.reason).toMatch(/^λ 0\.\d+ topJ \d at capacity 16 \(the device's limit\): \d+\.\d% of slots miss instead of 30\.0%, for \+\d\.\d\d% perplexity, at most \+\d\.\d\d% of a budget of \+1\.00%; bound by the budget: λ/);
});

test('with telemetry tells tokens per second, predicted and instead of what', () => {
  const { proposals, knowledge } = learn([learnableDevice('a')], [fast('a', { computeMs: 20, msPerMib: 5 })]);
  expect(proposals[0]!.reason).toMatch(/\d\d\.\d tokens\/s instead of \d\d\.\d/);
  expect(proposals[0]!.reason).toMatch(/; the best of another topJ within the budget, λ 0\.\d+ topJ \d, is (slower|as fast within 1%, but may cost \+\d\.\d\d%): \d+\.\d tokens\/s$/);
  expect(knowledge[0]!.choice!.chosen!.tokensPerSecond).toBeGreaterThan(knowledge[0]!.choice!.baseline!.tokensPerSecond);
});

test('devices of one model with different flash and memory get different settings', () => {
  const devices = [learnableDevice('slow', { maxCapacities: [12, 12] }), learnableDevice('quick', { maxCapacities: [16, 16] })];
  const { proposals } = learn(devices, [fast('slow', { msPerMib: 20 }, ''), fast('quick', { msPerMib: 0.005 }, '')].map((one) => ({ ...one, deviceClass: one.deviceId })));
  expect(proposals[0]).toMatchObject({ capacities: [12, 12] });
  expect(proposals[0]!.lambda).toBeGreaterThan(0);
});

test('budgets of devices and groups hold in place of the fleet\'s', () => {
  const budgetRules = parseBudgetRules('device/a: 0.2%; class=phone: 5%');
  const lambda = (device: Device) => propose(device, { budgetRules }).lambda;
  const phone = { ...learnableDevice('b'), labels: { class: 'phone' } };
  expect(lambda(learnableDevice('a'))).toBeLessThan(lambda(learnableDevice('c')));
  expect(lambda(phone)).toBeGreaterThan(lambda(learnableDevice('c')));
});

test('stays below the λ the device itself allows, and says so', () => {
  const proposal = propose(learnableDevice('a', { maxLambda: 0.1 }));
  expect(proposal.lambda).toBeLessThanOrEqual(0.1);
  expect(proposal.reason).toContain('bound by the device\'s own limit of λ 0.1');
});

test('takes what is known at the cache in force where an operator has pinned it, not at the limit', () => {
  const pinned: Device = {
    ...learnableDevice('a'), reported: Reported.fromPartial({ effective: { capacities: [8, 8] } }),
    sources: [{ field: 'cache_bytes', layer: ValueSource_Layer.LAYER_FLEET_PIN, detail: '' }],
  };
  const proposal = propose(pinned);
  expect(proposal).toMatchObject({ proposed: true, capacities: [8, 8] });
  expect(proposal.reason).toContain('at capacity 8 (pinned by an operator)');
});

test('splits the same bytes by misses where one layer needs them more', () => {
  const uneven = new QualitySurface([{
    domain: 'wiki', points: domain('wiki').points.map((one) => ({ ...one, layerMissRates: [Math.min(one.missRate * 1.9, 1), one.missRate * 0.1] })),
  }], SHAPE);
  const { capacities, reason } = propose(learnableDevice('a'), { surface: uneven });
  expect(capacities[0]).toBeGreaterThan(capacities[1]!);
  expect(capacities[0]! + capacities[1]!).toBeLessThanOrEqual(32);
  expect(reason).toContain('split by misses');
});

test('splits by what the class itself misses where that is not what the texts do, and only for that class', () => {
  const seen = (id: string, deviceClass: string, first: bigint, second: bigint): DeviceKnowledge => DeviceKnowledge.fromPartial({
    ...emptyKnowledge(id, 'model-a', deviceClass), bootId: '',
    frame: { layers: [first, second].map((misses, layer) => ({ layer, capacity: 16, hits: 1_000_000n - misses, misses })) },
    outcomes: [{ routing: 2, lambda: 0, capacities: [16, 16], windows: 9n, slots: 2_000_000n, misses: first + second }],
  });
  const devices = [['a', 'phone'], ['b', 'jetson']].map(([id, name]) => ({ ...learnableDevice(id!), labels: { class: name! } }));
  const { proposals } = learn(devices, [seen('a', 'phone', 400_000n, 200_000n), seen('b', 'jetson', 300_000n, 300_000n)]);
  expect(proposals[0]!.capacities[0]).toBeGreaterThan(proposals[0]!.capacities[1]!);
  expect(proposals[1]!.capacities).toEqual([16, 16]);
});

test.each([
  ['no model is loaded', learnableDevice('a', { modelHash: '' })],
  ['runs model model-b, the learner measures model-a', learnableDevice('a', { modelHash: 'model-b' })],
  ['has not told what its cache limit holds', learnableDevice('a', { maxCapacities: [] })],
  ['holds 3 experts of a layer, a token needs 4', learnableDevice('a', { maxCapacities: [16, 3] })],
  ['not been measured at so small a cache yet', learnableDevice('a', { maxCapacities: [6, 6] })],
  ['its telemetry is not believed: under the learner\'s model it tells of 3 layers', learnableDevice('a', { maxCapacities: [16, 16, 16] })],
  ['tells of 2 layers and top 4 of 64 experts', learnableDevice('a', { experts: 64, maxCapacities: [40, 40] })],
])('proposes nothing where "%s", and invents no figure', (reason, device) => {
  const proposal = propose(device);
  expect(proposal.reason).toContain(reason);
  expect(proposal).toMatchObject({ proposed: false, lambda: 0, predictedMissRate: 0, predictedCrossEntropyLoss: 0, baselineMissRate: 0, capacities: [] });
});

test('a quarantined device keeps what it has, and teaches its class nothing', () => {
  const honest = Array.from({ length: 6 }, (_, i) => fast(`d${i}`, { computeMs: 20, msPerMib: 2 }, 'phone'));
  const liar = { ...fast('liar', { computeMs: 500, msPerMib: 90 }, 'phone'), quarantine: { reason: 'hits fell', sinceMs: 1n, windows: 9n, sound: 0 } };
  const devices = [...honest, liar].map(({ deviceId }) => ({ ...learnableDevice(deviceId), labels: { class: 'phone' } }));
  const { proposals, knowledge } = learn(devices, [...honest, liar]);
  expect(proposals.at(-1)).toMatchObject({ proposed: false, reason: expect.stringContaining('not believed: hits fell') });
  expect(knowledge[0]!.speed!.priorMean!.compute).toBeCloseTo(fitPrior(honest.map(() => observeMany())).mean[0], 3);
});

test.each([['three times too slow', 3], ['three times too fast', 1 / 3]])('a class whose devices all tell of reads and compute %s changes nothing for another', (_, off) => {
  const phones = Array.from({ length: 12 }, (_, i) => fast(`phone-${i}`, { computeMs: 20, msPerMib: 2 }, 'phone'));
  const boards = Array.from({ length: 12 }, (_, i) => fast(`board-${i}`, { computeMs: 20 * off, msPerMib: 2 * off }, 'board'));
  const devices = [...phones, ...boards].map(({ deviceId, deviceClass }) => ({ ...learnableDevice(deviceId), labels: { class: deviceClass } }));
  const alone = learn(devices.slice(0, 12), phones);
  const beside = learn(devices, [...phones, ...boards]);
  expect(beside.proposals.slice(0, 12)).toEqual(alone.proposals);
  expect(beside.knowledge.slice(0, 12)).toEqual(alone.knowledge);
  expect(beside.knowledge[12]!.speed!.priorMean!.compute).toBeCloseTo(20 * off, 0);
});

function observeMany() {
  return Array.from({ length: 20 }).reduce<typeof NO_EVIDENCE>((known) => observe(known, speedWindow({ computeMs: 20, msPerMib: 2 }), VAGUE_PRIOR), NO_EVIDENCE);
}

test('where a class cannot tell yet what misses cost, a few of its devices are bent less, and never more', () => {
  const ids = Array.from({ length: 60 }, (_, i) => `phone-${i}`);
  const devices = ids.map((id) => ({ ...learnableDevice(id), labels: { class: 'phone' } }));
  const { proposals } = learn(devices, ids.map((id) => {
    const evidence = observe(NO_EVIDENCE, speedWindow({ stall: false }), VAGUE_PRIOR);
    return { ...emptyKnowledge(id, 'model-a', 'phone'), speed: speedMessage(evidence, VAGUE_PRIOR, posterior(evidence, VAGUE_PRIOR), { readNs: 0, readBytes: 0 }) };
  }));
  const exploring = proposals.filter(({ reason }) => reason.includes('bent less than it could be for a while'));
  const others = proposals.filter((one) => !exploring.includes(one));
  expect(exploring.length).toBeGreaterThan(0);
  expect(exploring.length).toBeLessThan(10);
  for (const one of exploring) expect(one.predictedCrossEntropyLoss).toBeLessThan(others[0]!.predictedCrossEntropyLoss);
});

test('what is known and makes no sense is not gone on from', () => {
  const broken = fast('a', { msPerMib: 5 });
  broken.speed!.information[0] = Number.NaN;
  expect(learn([learnableDevice('a')], [broken]).knowledge[0]!.speed).toBeUndefined();
});

describe('a device that runs a proposal already', () => {
  const running = (lambda: number, topJ: number, layer = ValueSource_Layer.LAYER_LEARNER): Device => ({
    ...learnableDevice('a'),
    desired: DeviceSpec.fromPartial({ lambda, topJ, routing: 2, cache: { $case: 'capacities', value: { experts: [16, 16] } }, modelHash: 'model-a' }),
    sources: [{ field: 'lambda', layer, detail: '' }],
  });
  const best = propose(learnableDevice('a'));
  const near = Math.round((best.lambda - 0.01) * 100) / 100;

  test('keeps it where the best gains too little', () => {
    const proposal = propose(running(near, best.topJ));
    expect(proposal).toMatchObject({ lambda: near, topJ: best.topJ });
    expect(proposal.reason).toMatch(/kept, as λ .* would gain too little/);
  });

  test('leaves it where the best is clearly better, and at once where it is beyond the budget', () => {
    expect(propose(running(0.02, 2))).toMatchObject({ lambda: best.lambda });
    expect(propose(running(near, best.topJ), { budget: { meanNats: 0.001, worstNats: 0.002 } }).lambda).toBeLessThan(near);
  });

  test('repeats what it has proposed while that is on its way, though figures have moved a little', () => {
    const first = learn([learnableDevice('a')]);
    const moved = new QualitySurface([{ domain: 'wiki', points: domain('wiki').points.map((one) => ({ ...one, loss: one.loss * 0.97, missRate: one.missRate * 0.99 })) }], SHAPE);
    const { lambda, topJ, capacities } = first.proposals[0]!;
    expect(propose(learnableDevice('a'), { surface: moved }).lambda).toBeGreaterThan(lambda);
    expect(learn([learnableDevice('a')], first.knowledge, { surface: moved }).proposals[0]).toMatchObject({ lambda, topJ, capacities });
  });

  test('does not mistake an operator\'s pin for its own', () => {
    expect(propose(running(near, best.topJ, ValueSource_Layer.LAYER_FLEET_PIN))).toMatchObject({ lambda: best.lambda });
  });
});

test('leaves a device alone that holds every expert', () => {
  const proposal = propose(learnableDevice('a', { maxCapacities: [32, 32] }));
  expect(proposal).toMatchObject({ proposed: true, lambda: 0 });
  expect(proposal.reason).toContain('every expert fits');
});

test('walks along each capacity once, those of most devices first, or along even levels where there are many', () => {
  const at = (...all: number[][]) => lookAtAll(all.map((maxCapacities, i) => learnableDevice(`d${i}`, { maxCapacities })), new Map(), SUBJECT, 0).learnt;
  expect(wantedCapacities(at([8, 8], [16, 16], [16, 16], [12, 11]), SUBJECT)).toEqual([[16, 16], [8, 8], [12, 11]]);
  expect(wantedCapacities(at(...Array.from({ length: 20 }, (_, i) => [8 + i, 8 + i])), SUBJECT)).toEqual([[8, 8], [13, 13], [18, 18], [22, 22], [27, 27]]);
});
