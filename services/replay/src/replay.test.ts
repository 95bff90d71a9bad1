import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { replay as replayTrace } from '@moefleet/edge-agent/engine';
import { replay, type ReplayRow } from './replay';
import { openBench, type Bench } from './testing/recorded-run';
import { traceOfRoutes, traceOfWindows, type Trace } from './trace';
import { type Grid, settingsOf } from './what-if';

const TOKENS = 1024;
const GRID: Grid = { routings: ['cache_prior'], lambdas: [0], topJs: [2], maxRanks: [32], massThresholds: [0.9], policies: ['adaptive'], halfLifeTokens: 0, capacities: [12] };

let bench: Bench;
let exact: Trace;
let quantised: Trace;
beforeAll(async () => {
  bench = await openBench('wikitext.txt', TOKENS);
  const own = await bench.evaluate({ capacity: 32 }, true);
  exact = await traceOfWindows('run', [await bench.windowOf(own, { capacity: 32 }, true)]);
  quantised = await traceOfWindows('run', [await bench.windowOf(own, { capacity: 32 }, false)]);
});
afterAll(() => bench.close());

const run = (trace: Trace, grid: Partial<Grid>) => replay(trace, settingsOf({ ...GRID, ...grid }, trace));
const within = ({ missRateBand: band }: ReplayRow, missRate: number) => band!.low <= missRate && missRate <= band!.high;

test('at λ 0 the misses of every layer are those of the engine, whoever is evicted', async () => {
  for (const row of await run(exact, { policies: ['lru', 'lfu', 'lfru', 'adaptive'] })) {
    const closed = await bench.evaluate({ capacity: 12, eviction: row.policy as 'lru' });
    expect(row.perLayer.map(({ layer, misses }) => [layer, misses])).toEqual(closed.perLayer.map(({ layer, misses }) => [layer, misses]));
    expect(row).toMatchObject({ missRateBand: null, missRate: closed.missRate, swapRate: 0, massLost: 0 });
    expect(row.meanLifetimeTokens).toBeCloseTo(closed.meanLifetimeTokens!, 9);
  }
});

test('one pass over the record gives LRU at every capacity exactly as replays of each do', async () => {
  const capacities = Array.from({ length: 29 }, (_, i) => i + 4);
  const rows = await run(exact, { policies: ['lru'], capacities });
  const each = await replayTrace({ ...exact, whatIfs: capacities.map((capacity) => ({ routing: 'original' as const, lambda: 0, topJ: 0, generation: 0, eviction: 'lru' as const, capacities: new Array<number>(6).fill(capacity) })) });
  each.forEach((layers, i) => {
    expect(rows[i]!.perLayer.map(({ misses }) => misses)).toEqual(layers.map(({ misses }) => misses));
    const [lifetimes, evictions] = [layers.reduce((sum, layer) => sum + layer.lifetimeTokens, 0), layers.reduce((sum, layer) => sum + layer.evictions, 0)];
    expect(rows[i]!.meanLifetimeTokens).toBe(evictions ? lifetimes / evictions : null);
  });
});

// The calibration knows the same kind of text, but none of these tokens.
test('under a pull it is within a point of the engine, and inside its band', async () => {
  const rows = await run(exact, { lambdas: [0.1, 0.2, 0.3], capacities: [8, 16] });
  expect(rows).toHaveLength(6);
  for (const row of rows) {
    const closed = await bench.evaluate({ capacity: row.capacity, lambda: row.lambda! });
    expect(Math.abs(row.missRate - closed.missRate)).toBeLessThanOrEqual(0.01);
    expect({ row: [row.lambda, row.capacity, row.missRate, closed.missRate, row.missRateBand], within: within(row, closed.missRate) }).toMatchObject({ within: true });
  }
});

test('a record made under a pull can be asked for less, and says how sure it is', async () => {
  const recorded = { capacity: 16, lambda: 0.2 };
  const bent = await bench.evaluate(recorded, true);
  const trace = await traceOfWindows('run', [await bench.windowOf(bent, recorded, true)]);
  expect(trace).toMatchObject({ bent: true, recorded: { lambda: 0.2 } });
  const [none, same] = await run(trace, { lambdas: [0, 0.2], capacities: [16] });
  expect(same!.missRate).toBeCloseTo(bent.missRate, 9);
  const own = await bench.evaluate({ capacity: 16 });
  expect(within(none!, own.missRate)).toBe(true);
  expect(none!.missRateBand!.high - none!.missRateBand!.low).toBeGreaterThan(same!.missRateBand!.high - same!.missRateBand!.low);
});

test('a byte a score moves no miss rate by more than a fifth of a point', async () => {
  const grid: Partial<Grid> = { routings: ['original', 'cache_prior', 'max_rank', 'pruned'], lambdas: [0.1, 0.3], policies: ['lru', 'adaptive'], capacities: [8, 16, 24] };
  const [fine, coarse] = [await run(exact, grid), await run(quantised, grid)];
  fine.forEach((row, i) => expect(Math.abs(coarse[i]!.missRate - row.missRate)).toBeLessThanOrEqual(0.002));
  expect(coarse[0]!.missRateBand).not.toBeNull();
});

test('tokens of the warm-up fill the caches and do not count', async () => {
  const setting = settingsOf({ ...GRID, policies: ['lru', 'lfu'] }, exact);
  const [cold, warm] = [await replay(exact, setting), await replay(exact, setting, { uncountedTokens: 256 })];
  cold.forEach((row, i) => {
    expect(warm[i]!.slots).toBe(row.slots * 0.75);
    expect(warm[i]!.misses).toBeLessThan(row.misses);
  });
});

test('predicts tokens/s from the cost of a token and of a miss', async () => {
  const [row] = await replay(exact, settingsOf(GRID, exact), { cost: { computeMs: 10, missMs: 2 } });
  expect(row!.tokensPerSecond).toBeCloseTo(1000 / (10 + 2 * (row!.misses / TOKENS)), 9);
});

test('stops when it is told to', async () => {
  const interrupt = new AbortController();
  const running = replay(exact, settingsOf({ ...GRID, capacities: [8, 9, 10, 11, 12] }, exact), { signal: interrupt.signal, onProgress: () => interrupt.abort(new Error('enough')) });
  await expect(running).rejects.toThrow('enough');
});

describe('a route file', () => {
  const LINES = ['# route_trace v1', '# model=m n_expert=8 n_expert_used=2', 'turn,phase,step,layer,slot,expert'];
  const rows = Array.from({ length: 12 }, (_, step) => [0, 1].map((slot) => `0,1,${step},0,${slot},${(step * 3 + slot) % 8}`)).flat();
  const trace = traceOfRoutes('phone.csv', [...LINES, ...rows].join('\n'), null);

  test('answers at λ 0', async () => {
    const found = await run(trace, { lambdas: [0], policies: ['lru', 'belady'], capacities: [4, 6] });
    expect(found.map(({ policy, capacity, slots, missRateBand }) => [policy, capacity, slots, missRateBand])).toEqual([['lru', 4, 24, null], ['lru', 6, 24, null], ['belady', 4, 24, null], ['belady', 6, 24, null]]);
  });

  test.each([
    [{ lambdas: [0, 0.2] }, /--lambda: 0.2 needs the router's scores, and phone.csv is a route file.*--record-windows/],
    [{ routings: ['original', 'max_rank'] as const, maxRanks: [4] }, /--routing: max_rank needs the router's scores/],
    [{ capacities: [4, 9] }, /--capacity: 9 is more than the 8 experts/], [{ capacities: [1] }, /--capacity: 1 is below the 2 experts/],
  ])('cannot answer %j', (grid, says) => {
    expect(() => settingsOf({ ...GRID, capacities: [4], ...grid }, trace)).toThrow(says);
  });
});

test('the calibration was made within the promised point', () => {
  const { openLoop, quantisation, runs } = JSON.parse(readFileSync(join(__dirname, '..', 'calibration.json'), 'utf8')) as {
    openLoop: { floorPoints: number; slopePoints: number; mostErrorPoints: number }; quantisation: { mostPoints: number };
    runs: { routing: string; lambda: number; openSwapRate: number; openDropRate: number; openLoopErrorPoints: number }[];
  };
  expect(quantisation.mostPoints).toBeLessThanOrEqual(0.2);
  for (const run of runs) {
    if (run.routing === 'original') expect(run.openLoopErrorPoints).toBe(0);
    expect(Math.abs(run.openLoopErrorPoints)).toBeLessThanOrEqual(openLoop.floorPoints + openLoop.slopePoints * (run.openSwapRate + run.openDropRate));
  }
});
