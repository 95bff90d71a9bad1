import fc from 'fast-check';
import { fitPrior, NO_EVIDENCE, observe, posterior, predictSpeed, type SpeedEvidence, type SpeedPrior, VAGUE_PRIOR } from './speed-model';
import { normal, seeded, speedWindow } from './testing/synthetic';

type Truth = NonNullable<Parameters<typeof speedWindow>[0]>;

const MIB = 2 ** 20;

function fed(count: number, truth: Truth, { seed = 1, prior = VAGUE_PRIOR, sd = 0.05, from = NO_EVIDENCE, vary = 1 } = {}): SpeedEvidence {
  const random = seeded(seed);
  let evidence = from;
  for (let i = 0; i < count; i += 1) {
    const mibPerToken = (truth.mibPerToken ?? 3) * (1 + vary * (random() - 0.5));
    evidence = observe(evidence, speedWindow({ ...truth, mibPerToken, noise: 1 + sd * normal(random) }), prior);
  }
  return evidence;
}

const speedAt = (evidence: SpeedEvidence, mib: number, prior: SpeedPrior = VAGUE_PRIOR) => predictSpeed(posterior(evidence, prior), mib * MIB);

test.each([['with stalls counted', true], ['from the whole time alone, where the misses vary', false]])('finds compute and reading %s', (_, stall) => {
  const { mean } = posterior(fed(60, { computeMs: 20, msPerMib: 2, stall }), VAGUE_PRIOR);
  expect(mean[0]).toBeGreaterThan(18);
  expect(mean[0]).toBeLessThan(22);
  expect(mean[1]).toBeGreaterThan(1.4);
  expect(mean[1]).toBeLessThan(2.6);
});

test('predicts a speed it never saw within its error, and is less sure of it', () => {
  let inside = 0;
  for (let seed = 0; seed < 40; seed += 1) {
    const { tokensPerSecond, sd } = speedAt(fed(30, {}, { seed }), 0.5);
    if (Math.abs(tokensPerSecond - 1000 / 21) < 2 * sd) inside += 1;
  }
  expect(inside).toBeGreaterThanOrEqual(34);
  const few = speedAt(fed(2, {}), 0.5);
  const many = speedAt(fed(50, {}), 0.5);
  expect(few.sd / few.tokensPerSecond).toBeGreaterThan(many.sd / many.tokensPerSecond);
});

test('is not moved by a device that pauses now and then', () => {
  const random = seeded(3);
  let evidence = NO_EVIDENCE;
  for (let i = 0; i < 60; i += 1) evidence = observe(evidence, speedWindow({ noise: i % 10 === 9 ? 6 : 1 + 0.03 * normal(random) }), VAGUE_PRIOR);
  expect(speedAt(evidence, 3).msPerToken).toBeLessThan(28.5);
});

test('a new device begins as its class is, and ends as it is itself', () => {
  const devices = Array.from({ length: 20 }, (_, i) => fed(30, { computeMs: 20 + (i % 5), msPerMib: 2 }, { seed: i }));
  const prior = fitPrior(devices);
  expect(prior.mean[0]).toBeGreaterThan(20.5);
  expect(prior.mean[0]).toBeLessThan(23.5);
  const newcomer = posterior(NO_EVIDENCE, prior);
  expect(newcomer.mean[0]).toBeCloseTo(prior.mean[0], 6);
  const odd = fed(60, { computeMs: 45, msPerMib: 2 }, { prior });
  expect(posterior(odd, prior).mean[0]).toBeGreaterThan(42);
});

test('what is learnt about how misses cost is shared where a device alone cannot tell', () => {
  const devices = Array.from({ length: 12 }, (_, i) => fed(30, { mibPerToken: 1 + (i % 4), stall: false }, { seed: i, vary: 0.1 }));
  const prior = fitPrior(devices);
  const alone = fed(10, { stall: false }, { seed: 99, vary: 0 });
  expect(speedAt(alone, 0.5, prior).sd).toBeLessThan(speedAt(alone, 0.5).sd / 2);
});

test('a few devices that lie by a factor of three do not move their class', () => {
  const honest = Array.from({ length: 16 }, (_, i) => fed(30, {}, { seed: i }));
  const liars = Array.from({ length: 3 }, (_, i) => fed(30, { computeMs: 60, msPerMib: 6 }, { seed: 50 + i }));
  const [clean, mixed] = [fitPrior(honest), fitPrior([...honest, ...liars])];
  expect(mixed.mean[0]).toBeLessThan(clean.mean[0] * 1.15);
  expect(mixed.mean[1]).toBeLessThan(clean.mean[1] * 1.15);
});

test.each([
  ['a throttled device', { computeMs: 40 }, 'compute', true], ['worn flash', { msPerMib: 5 }, 'reading', true], ['a device that has cooled down', { computeMs: 10 }, 'compute', false],
])('tells %s as drift, forgets, and follows within a few windows', (_, changed, cause, slower) => {
  const settled = fed(60, {}, { sd: 0.04 });
  expect(settled.drifts).toBe(0);
  const after = fed(16, changed, { from: settled, seed: 7, sd: 0.04 });
  expect(after.lastDrift).toMatchObject({ cause, slower });
  const truth = { computeMs: 20, msPerMib: 2, ...changed };
  const expected = truth.computeMs + truth.msPerMib * 3;
  expect(Math.abs(speedAt(after, 3).msPerToken / expected - 1)).toBeLessThan(0.1);
});

test('whatever a window says, what is known stays a number, and predictions stay positive', () => {
  const positive = fc.double({ min: 1e-6, max: 1e9, noNaN: true });
  fc.assert(fc.property(fc.array(fc.tuple(positive, positive, fc.option(positive), fc.integer({ min: 16, max: 100_000 })), { maxLength: 20 }), (windows) => {
    let evidence = NO_EVIDENCE;
    for (const [decode, bytes, stall, tokens] of windows) {
      evidence = observe(evidence, { ...speedWindow(), tokens, decodeNs: decode * tokens, missBytes: bytes, stallNsPerByte: stall }, VAGUE_PRIOR);
    }
    const { tokensPerSecond, sd } = speedAt(evidence, 1, fitPrior([evidence, NO_EVIDENCE]));
    expect(tokensPerSecond).toBeGreaterThan(0);
    expect(Number.isFinite(tokensPerSecond) && Number.isFinite(sd)).toBe(true);
  }));
});
