import { join } from 'node:path';
import { runCaptured } from '../testing/run-captured';

const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
const TEXT = join(FIXTURES, 'wikitext.txt');
const bench = (...flags: string[]) => runCaptured(['engine', 'bench', '--model', MODEL, '--text', TEXT, '--threads', '1', '--no-cgroup', ...flags]);

interface Report {
  conditions: Record<string, unknown>;
  computeMs: { median: number } | null;
  arms: {
    name: string; void: string | null; tokens: number; misses: (number | null)[]; missRate: { median: number } | null; perplexity: { median: number };
    tokensPerSecond: { median: number; min: number; max: number }; speedup: Record<'overReference' | 'overStock', { median: number } | null>;
    floor: { sumMs: number; computeMs: number; readMs: number; overSum: number } | null;
  }[];
}

test('measures every arm on the same tokens, and an LRU arm misses what an evaluation misses', async () => {
  const { code, stdout } = await bench('--tokens', '8', '--runs', '1', '--capacity', '25%', '--arms', 'stock,lru', '--arm', 'bent:lambda=0.3,topJ=0', '--json');
  expect(code).toBe(0);
  const report = JSON.parse(stdout) as Report;
  expect(report.conditions).toMatchObject({ capacity: 8, threads: 1, runs: 1, tokens: 8, context: 8, memoryBytes: null, throttleBytesPerSecond: null, missing: expect.stringContaining('control groups') as string });
  const [stock, lru, bent] = report.arms;
  expect(report.arms.map((arm) => [arm.name, arm.void, arm.tokens])).toEqual([['stock', null, 8], ['lru', null, 8], ['bent', null, 8]]);

  const { stdout: scored } = await runCaptured(['engine', 'eval', '--model', MODEL, '--text', TEXT, '--tokens', '8', '--context', '8', '--capacity', '8', '--eviction', 'lru', '--threads', '1', '--stepped', '--json']);
  const evaluated = JSON.parse(scored) as { misses: number; missRate: number; perplexity: number };
  expect(lru!.misses).toEqual([evaluated.misses]);
  expect(lru!.missRate!.median).toBeCloseTo(evaluated.missRate, 12);
  expect(lru!.perplexity.median).toBeCloseTo(evaluated.perplexity, 4);
  // λ 0 is the model's own routing, so the stock library says the same.
  expect(stock!.perplexity.median).toBeCloseTo(lru!.perplexity.median, 2);
  expect(bent!.misses[0]).toBeLessThan(lru!.misses[0]!);

  expect(stock).toMatchObject({ misses: [null], missRate: null, floor: null });
  expect(lru!.speedup.overReference!.median).toBe(1);
  expect(lru!.speedup.overStock!.median).toBeCloseTo(lru!.tokensPerSecond.median / stock!.tokensPerSecond.median, 6);
  expect(report.computeMs!.median).toBeGreaterThan(0);
  const floor = lru!.floor!;
  expect(floor.sumMs).toBeCloseTo(floor.computeMs + floor.readMs, 9);
});

test('buffered reads void an arm, and a bench of nothing else fails', async () => {
  const { code, stdout, stderr } = await bench('--tokens', '4', '--runs', '1', '--arms', '', '--arm', 'cached:directIo=false', '--no-floor');
  expect(code).toBe(1);
  expect(stdout).toMatch(/cached +void/);
  expect(stderr).toMatch(/no arm's result counts: reads went through the page cache/);
});

test.each([
  [['--arms', 'lru,lru'], /two arms are named lru/],
  [['--arms', ','], /none is named/],
  [['--arms', 'stock'], /the floor is measured with the engine/],
  [['--tokens', '300'], /--tokens: 300 is not a multiple of --context 256/],
  [['--warm-up', '8', '--tokens', '8'], /--warm-up: 8 leaves nothing of 8 tokens/],
  [['--capacity', '2'], /--capacity: 2 is outside 4 to 32/],
  [['--capacity', '140%'], /from 0 to 100/],
  [['--profile', 'floppy'], /emmc, ufs2.1, ufs3.1, raw/],
  [['--text', '/nowhere/text.txt'], /--text/],
])('refuses %j', async (flags, why) => {
  const { code, stderr } = await bench('--runs', '1', ...flags);
  expect([code, stderr]).toEqual([2, expect.stringMatching(why) as string]);
});
