import type { Measured } from '../registry/staged-rollout';
import { judgeGate, lossBounds, parseGates } from './gate';

function measured(losses: number[], change: Partial<Measured> = {}): Measured {
  return { windows: losses.map((loss) => 3 + loss), windowsLambdaZero: losses.map(() => 3), missRate: 0.2, swapRate: 0.1, tokensPerSecond: 10, ...change };
}

function verdict(gate: string, now: Measured | null, baseline: Measured | null = null, errors = 0) {
  return judgeGate(parseGates(gate)[0]!, { measured: now, baseline, errors }).verdict;
}

test('reads metrics, operators, percentages and baselines', () => {
  expect(parseGates(' perplexityLoss < 1% ,missRate<=baseline,errors==0')).toEqual([
    { text: 'perplexityLoss<1%', metric: 'perplexityLoss', operator: '<', bound: { t: 'constant', value: 0.01 } },
    { text: 'missRate<=baseline', metric: 'missRate', operator: '<=', bound: { t: 'baseline' } },
    { text: 'errors==0', metric: 'errors', operator: '==', bound: { t: 'constant', value: 0 } },
  ]);
  expect(parseGates('')).toEqual([]);
});

test.each(['perplexity<1%', 'perplexityLoss=1%', 'missRate<', 'missRate<baseline%', 'errors<=baseline', 'missRate<nan'])('refuses %s', (text) => {
  expect(() => parseGates(text)).toThrow(/staging\.gate/);
});

test('bounds are those of Student\'s t over the windows\' differences', () => {
  // Differences 1, 2, 3, 4: mean 2.5, standard error 0.6455, t(3) 2.353.
  const bounds = lossBounds(measured([1, 2, 3, 4]))!;
  expect(bounds.mean).toBeCloseTo(2.5, 9);
  expect(bounds.low).toBeCloseTo(2.5 - 2.353 * 0.645497, 5);
  expect(bounds.high).toBeCloseTo(2.5 + 2.353 * 0.645497, 5);
});

test('the bound decides: below it passes, above it fails, astride is unclear', () => {
  expect(verdict('crossEntropyLoss<0.01', measured([0.001, 0.002, 0.001, 0.002]))).toBe('pass');
  expect(verdict('crossEntropyLoss<0.01', measured([0.3, 0.31, 0.29, 0.3]))).toBe('fail');
  expect(verdict('crossEntropyLoss<0.01', measured([0, 0.03, -0.01, 0.02]))).toBe('unclear');
});

test('too few windows, numbers that are none and what was not measured are unclear', () => {
  expect(verdict('perplexityLoss<1%', measured([0, 0, 0]))).toBe('unclear');
  expect(verdict('perplexityLoss<1%', measured([0, 0, 0, NaN]))).toBe('unclear');
  expect(verdict('perplexityLoss<1%', null)).toBe('unclear');
  expect(verdict('tokensPerSecond>5', measured([0, 0, 0, 0], { tokensPerSecond: null }))).toBe('unclear');
  expect(verdict('missRate<=baseline', measured([0, 0, 0, 0]))).toBe('unclear');
});

test('a device that routes as its model does has lost exactly nothing', () => {
  expect(verdict('perplexityLoss==0', measured([0, 0, 0, 0]))).toBe('pass');
});

test('what is counted is compared as it is', () => {
  expect(verdict('missRate<=baseline', measured([0, 0, 0, 0], { missRate: 0.1 }), measured([0, 0, 0, 0]))).toBe('pass');
  expect(verdict('missRate<=baseline', measured([0, 0, 0, 0], { missRate: 0.3 }), measured([0, 0, 0, 0]))).toBe('fail');
  expect(verdict('errors==0', null, null, 2)).toBe('fail');
  expect(verdict('tokensPerSecond>=baseline', measured([0, 0, 0, 0]), measured([0, 0, 0, 0]))).toBe('pass');
});

test('the rise of perplexity is over what was measured before the change, on the windows that both have', () => {
  const after = (losses: number[], windowTokens = 128) => measured(losses, { windowsLambdaZero: [], windowTokens });
  expect(verdict('perplexityRise<2%', after([0.01, 0.012, 0.009, 0.011, 9]), after([0, 0, 0, 0]))).toBe('pass');
  expect(verdict('perplexityRise<2%', after([0.05, 0.06, 0.05, 0.06]), after([0, 0, 0, 0]))).toBe('fail');
  expect(verdict('perplexityRise<2%', after([0, 0, 0, 0]), after([0, 0, 0, 0], 256))).toBe('unclear');
  expect(verdict('perplexityRise<2%', after([0, 0, 0, 0]))).toBe('unclear');
  expect(() => parseGates('perplexityRise<=baseline')).toThrow('compare it with a number');
});
