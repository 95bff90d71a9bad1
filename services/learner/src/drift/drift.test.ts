/** Drift told apart on real runs of the reference model over texts of different kinds: Wikipedia, code, arithmetic. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Engine, type EvalResult } from '@moefleet/edge-agent/engine';
import { Routing } from '@moefleet/proto';
import { assessDrift, type DriftInputs } from './assess-drift';
import { divergencesOf } from './use-bits';
import { divergences, jensenShannon, type UseHistogram } from './use-histogram';

const fixtures = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const LAYERS = 6;
const EXPERTS = 32;
const TOP_K = 4;
const TOKENS = 2048;
const CONTEXT = 256;
let engine: Engine;

interface Run { wanted: UseHistogram; chosen: UseHistogram; result: EvalResult }
type Part = 'code.txt' | 'math.txt' | 'wikitext.txt';

beforeAll(async () => {
  engine = await Engine.open({
    modelPath: join(fixtures, 'tinymoe-17m-q8_0.gguf'), contextTokens: 0, threads: 1, lanes: 2, directIo: false, prefillBytes: 0, keepAll: true,
    spec: { routing: 'cache_prior', lambda: 0, topJ: 2, capacities: Array<number>(LAYERS).fill(12), generation: 0 },
  });
});
afterAll(() => engine.close());

/** The text through the router: what its tokens wanted, recorded at λ 0, and what they got at λ. */
async function run(text: Part, from: number, lambda = 0, topJ = 2): Promise<Run> {
  const tokens = engine.tokenize(readFileSync(join(fixtures, text), 'utf8').slice(from, from + 16_000), false, false).slice(0, TOKENS + 1);
  const evaluate = (strength: number) => engine.evaluate({
    tokens, context: CONTEXT, stepped: false, recordRoutes: true,
    spec: { routing: 'cache_prior', lambda: strength, topJ, capacities: Array<number>(LAYERS).fill(12), generation: 0, eviction: 'lfu', evictionHalfLifeTokens: 128 },
  });
  const wanted = histogramOf((await evaluate(0)).routes!);
  const result = await evaluate(lambda);
  return { wanted, chosen: histogramOf(result.routes!), result };
}

function histogramOf(routes: Int32Array): UseHistogram {
  const layers = Array.from({ length: LAYERS }, () => Array<number>(EXPERTS).fill(0));
  for (const [i, expert] of routes.entries()) layers[Math.floor(i / TOP_K) % LAYERS]![expert]! += 1;
  return { layers, tokens: TOKENS };
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const quiet: DriftInputs = { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, modelHash: 'ab', chosenFor: 'ab', workloadBits: [], lambdaBits: [], entropyChange: null, windows: [], massLost: null, measuredMassLost: () => null, massLimit: null };
const inputs = (reference: Run, now: Run, over: Partial<DriftInputs> = {}): DriftInputs => ({
  ...quiet, workloadBits: divergencesOf(reference.wanted, now.wanted), lambdaBits: divergencesOf(now.wanted, now.chosen), massLost: { mean: now.result.massLost, tokens: TOKENS }, ...over,
});

test('parts of one text are close, code, arithmetic and articles are far apart, whatever λ bends', async () => {
  const [code, moreCode, maths, articles] = [await run('code.txt', 0), await run('code.txt', 30_000), await run('math.txt', 0), await run('wikitext.txt', 0)];
  const same = mean(divergences(code.wanted, moreCode.wanted));
  const apart = [mean(divergences(code.wanted, maths.wanted)), mean(divergences(code.wanted, articles.wanted)), mean(divergences(articles.wanted, maths.wanted))];
  expect(Math.min(...apart)).toBeGreaterThan(2 * same);
  expect(assessDrift(inputs(code, moreCode))).toMatchObject({ causes: [], backOffTo: null, measureAnew: false, reason: '' });
  for (const [from, to] of [[code, maths], [articles, code], [maths, articles]] as const) {
    const finding = assessDrift(inputs(from, to));
    expect(finding.causes).toEqual(['workload']);
    expect(finding.reason).toMatch(/tokens want other experts than before: 0\.\d+ bits/);
  }
  // A bent router serves other experts, and the tokens go on wanting what they did.
  const bent = await run('code.txt', 30_000, 1, 0);
  const served = inputs(code, bent, { lambda: 1 });
  expect(assessDrift(served).causes).toContain('lambda');
  expect(mean(served.lambdaBits)).toBeGreaterThan(2 * mean(served.workloadBits));
});

test('λ backs off at once, and the surface is measured anew, where more mass is lost than on any text it was measured on', async () => {
  const surface = new Map<number, number>([[0, 0]]);
  for (const lambda of [0.1, 0.2, 0.3]) surface.set(lambda, (await run('code.txt', 0, lambda, 1)).result.massLost);
  const measuredMassLost = (lambda: number) => {
    const below = Math.floor(lambda * 10 + 1e-9) / 10;
    const [a, b] = [surface.get(below), surface.get(Math.round(below * 10 + 1) / 10) ?? surface.get(0.3)];
    return a === undefined || b === undefined ? null : { least: 0, most: a + ((lambda - below) / 0.1) * (b - a) };
  };
  const now = await run('code.txt', 30_000, 0.3, 1);
  const at = (factor: number, tokens = TOKENS, over: Partial<DriftInputs> = {}) => assessDrift({ ...quiet, lambda: 0.3, measuredMassLost, massLost: { mean: surface.get(0.3)! * factor, tokens }, ...over });
  expect(assessDrift(inputs(now, now, { lambda: 0.3, measuredMassLost }))).toMatchObject({ backOffTo: null, measureAnew: false });
  const beyond = at(1.5);
  expect(beyond.measureAnew).toBe(true);
  expect(beyond.backOffTo).toBeLessThan(0.3);
  expect(measuredMassLost(beyond.backOffTo!)!.most * 1.5).toBeLessThanOrEqual(surface.get(0.3)!);
  expect(beyond.reason).toMatch(/no text that was measured at λ 0.3 loses more than 0\.\d+/);
  expect(at(1.3, 512).backOffTo).toBeNull();
  expect(at(9, 500).backOffTo).toBeNull();
  expect(at(9, TOKENS, { measuredMassLost: () => null }).backOffTo).toBeNull();
  expect(at(1, TOKENS, { massLimit: surface.get(0.3)! / 2 }).backOffTo).toBeLessThan(0.3);
});

test('another model voids everything, and nothing else is made of its uses', () => {
  expect(assessDrift({ ...quiet, modelHash: 'cd', workloadBits: [0.5], lambdaBits: [0.5] })).toMatchObject({ causes: ['model'], backOffTo: 0, measureAnew: true });
});

test('lock-in is named where swaps rise surely and misses stay', () => {
  const windows = (swaps: (i: number) => number, misses: (i: number) => number) => Array.from({ length: 8 }, (_, i) => ({ slots: 10_000, swaps: Math.round(10_000 * swaps(i)), misses: Math.round(10_000 * misses(i)) }));
  const wobble = (i: number) => (i % 2 ? 0.001 : -0.001);
  const causes = (swaps: (i: number) => number, misses: (i: number) => number, lambda = 0.3) => assessDrift({ ...quiet, windows: windows(swaps, misses), lambda }).causes;
  expect(causes((i) => 0.1 + 0.01 * i + wobble(i), (i) => 0.1 + wobble(i))).toEqual(['lock-in']);
  expect(causes((i) => 0.1 + 0.01 * i, (i) => 0.1 - 0.008 * i)).toEqual([]);
  expect(causes((i) => 0.1 + 20 * wobble(i), () => 0.1)).toEqual([]);
  expect(causes((i) => 0.1 + 0.01 * i, () => 0.1, 0)).toEqual([]);
});

test('divergence is 0 for the same, 1 for disjoint use, symmetric, and takes off what chance makes', () => {
  expect(jensenShannon([1, 2, 3], [2, 4, 6])).toBeCloseTo(0, 12);
  expect(jensenShannon([1, 0], [0, 1])).toBe(1);
  expect(jensenShannon([3, 1, 0], [1, 1, 1])).toBeCloseTo(jensenShannon([1, 1, 1], [3, 1, 0]), 12);
  expect(jensenShannon([], [1])).toBe(0);
  expect(divergences({ tokens: 10, layers: [[5, 4, 1]] }, { tokens: 10, layers: [[4, 5, 1]] })).toEqual([0]);
  expect(divergences({ tokens: 10, layers: [[1]] }, { tokens: 10, layers: [[1], [1]] })).toEqual([]);
});

test('a rise of the routers\' entropy is another workload', () => {
  expect(assessDrift({ ...quiet, entropyChange: 0.45 })).toMatchObject({ causes: ['workload'], reason: 'the routers\' entropy has risen by 0.45 bits' });
  expect(assessDrift({ ...quiet, entropyChange: 0.2 }).causes).toEqual([]);
});
