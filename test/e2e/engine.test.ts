/** What the engine promises, seen through the command line on both reference models and unseen text. */
import { moefleet as run } from '../../services/demo/src/command-line';
import { MODEL, SECOND_MODEL, WIKITEXT } from '../harness/paths';

interface Evaluation { tokens: number; crossEntropy: number; perplexity: number; missRate: number; swapRate: number; massLost: number; crossEntropyLoss?: number; perLayer: unknown[] }
interface Generation { text: string; misses: number; flashBytes: number; tokens: number }

/**
 * Expert bytes: three matrices in Q8_0, 34 bytes per 32 values. `nats`: how far batched and stepped cross-entropy may be
 * apart over 1,024 tokens. The kernels round differently, a near tie then falls to another expert, and the cache after it
 * is another: eight of 64 experts have more near ties than four of 32 (seen: up to 0.006, of either sign; 0.0002 and 0.003 over 4,096).
 */
const MODELS = [
  { name: 'qwen2moe', model: MODEL, layers: 6, experts: 32, topK: 4, expertBytes: (3 * 192 * 128 * 34) / 32, nats: 0.002 },
  { name: 'olmoe', model: SECOND_MODEL, layers: 8, experts: 64, topK: 8, expertBytes: (3 * 192 * 64 * 34) / 32, nats: 0.012 },
];

const moefleet = <T>(...args: string[]): Promise<T> => run<T>(args, { operator: '127.0.0.1:1' });

describe.each(MODELS)('$name', ({ model, name, layers, experts, topK, expertBytes, nats }) => {
  const evaluate = (...flags: string[]): Promise<Evaluation> =>
    moefleet('engine', 'eval', '--model', model, '--text', WIKITEXT, '--threads', '1', ...flags);
  const generate = (...flags: string[]): Promise<Generation> =>
    moefleet('engine', 'generate', '--model', model, '--prompt', 'The river rises in the hills and', '--threads', '1', ...flags);
  const [quarter, half] = [String(experts / 4), String(experts / 2)];

  test('inspect tells what the hook selects by and what one token touches', async () => {
    const info = await moefleet<Record<string, unknown>>('engine', 'inspect', '--model', model);
    expect(info).toMatchObject({ architecture: name, layers, experts, topK, selectBy: 'logits' });
    expect(info['expertBytes']).toEqual(Array(layers).fill(expertBytes));
    expect(info['tokenCycleBytes']).toBe(layers * topK * expertBytes);
  });

  test('at lambda 0 the greedy text of 128 tokens is the same whatever the capacity', async () => {
    const small = await generate('--tokens', '128', '--capacity', quarter, '--lambda', '0');
    const full = await generate('--tokens', '128', '--capacity', String(experts), '--lambda', '0');
    expect(small.text).toBe(full.text);
    expect(small.text.length).toBeGreaterThan(100);
    expect(small.misses).toBeGreaterThan(full.misses);
  });

  test('at lambda 0 cross-entropy does not depend on the capacity', async () => {
    const results = [];
    for (const capacity of [topK, experts / 4, experts / 2, experts]) results.push(await evaluate('--tokens', '1024', '--lambda', '0', '--capacity', String(capacity)));
    for (const result of results) expect(result.crossEntropy).toBe(results[0]!.crossEntropy);
    for (let i = 1; i < results.length; i++) expect(results[i]!.missRate).toBeLessThan(results[i - 1]!.missRate);
  });

  describe.each(['0', '0.1', '0.3'])('lambda %s', (lambda) => {
    test.each([quarter, half])('batched and stepped evaluation agree at capacity %s', async (capacity) => {
      const flags = ['--tokens', '1024', '--lambda', lambda, '--capacity', capacity];
      const batched = await evaluate(...flags);
      const stepped = await evaluate(...flags, '--stepped');
      expect(stepped.tokens).toBe(batched.tokens);
      expect(Math.abs(stepped.crossEntropy - batched.crossEntropy)).toBeLessThanOrEqual(nats);
      expect(Math.abs(stepped.missRate - batched.missRate)).toBeLessThanOrEqual(0.005);
    });
  });

  test('lambda 0.3 with half the experts at least halves the misses of unseen text', async () => {
    const flags = ['--tokens', '4096', '--capacity', half];
    const original = await evaluate(...flags, '--lambda', '0');
    const bent = await evaluate(...flags, '--lambda', '0.3', '--compare');
    process.stdout.write(`    capacity ${half} of ${experts}: miss rate ${original.missRate.toFixed(4)} at λ 0, ${bent.missRate.toFixed(4)} at λ 0.3; ` +
      `perplexity +${((Math.exp(bent.crossEntropyLoss!) - 1) * 100).toFixed(2)}%\n`);
    expect(bent.missRate).toBeLessThanOrEqual(original.missRate / 2);
    expect(bent.crossEntropyLoss).toBeCloseTo(bent.crossEntropy - original.crossEntropy, 5);
  });
});
