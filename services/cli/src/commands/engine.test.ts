import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Captured, runCaptured } from '../testing/run-captured';

// The engine runs in a child process, made from what was built.
const REPO = join(__dirname, '..', '..', '..', '..');
const CLI = join(REPO, 'services', 'cli', 'bin', 'moefleet.js');
const MODEL = join(REPO, 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');
const TEXT = join(REPO, 'test', 'fixtures', 'wikitext.txt');

let folder: string;
beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-engine-')); });
afterAll(() => rmSync(folder, { recursive: true }));

const run = (...args: string[]): Promise<Captured> => runCaptured(args);
async function json<T>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await run(...args, '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as T;
}

interface Evaluated {
  tokens: number; crossEntropy: number; perplexity: number; hits: number; misses: number; missRate: number; capacities: number[];
  perLayer: { misses: number; swapRate: number }[]; swapRate: number; dropRate: number; crossEntropyLoss?: number; perplexityLossPercent?: number; baseline?: { crossEntropy: number };
}
const evaluate = (...flags: string[]) => json<Evaluated>('engine', 'eval', '--model', MODEL, '--text', TEXT, '--tokens', '512', '--threads', '1', ...flags);

test('inspect tells what memory it takes, and it adds up', async () => {
  const { memory, ...info } = await json<{ memory: Record<string, number> } & Record<string, unknown>>('engine', 'inspect', '--model', MODEL, '--capacity', '8');
  expect(info).toMatchObject({ architecture: 'qwen2moe', experts: 32, topK: 4, selectBy: 'logits', capacities: [8, 8, 8, 8, 8, 8] });
  expect(info['hash']).toMatch(/^[0-9a-f]{64}$/);
  const { denseBytes, kvBytes, computeBytes, cacheBytes, stagingBytes, prefillBytes, reserveBytes, totalBytes } = memory as Record<string, number>;
  expect(cacheBytes).toBe(6 * 8 * (info['expertBytes'] as number[])[0]!);
  expect(totalBytes).toBe(denseBytes! + kvBytes! + computeBytes! + cacheBytes! + stagingBytes! + prefillBytes! + reserveBytes!);
  expect((await run('engine', 'inspect', '--model', MODEL)).stdout).toMatch(/token cycle +1.79 MiB/);
});

test('eval gives the figures of the text, per layer and in sum, and what λ costs', async () => {
  const result = await evaluate('--capacity', '16', '--lambda', '0.3', '--compare');
  expect(result.tokens).toBe(512);
  expect(result.hits + result.misses).toBe(512 * 4 * 6);
  expect(result.perLayer.reduce((sum, layer) => sum + layer.misses, 0)).toBe(result.misses);
  expect(result.perplexity).toBeCloseTo(Math.exp(result.crossEntropy), 9);
  expect(result.crossEntropyLoss).toBeCloseTo(result.crossEntropy - result.baseline!.crossEntropy, 12);
  expect(result.perplexityLossPercent).toBeCloseTo(Math.expm1(result.crossEntropyLoss!) * 100, 9);
  const alone = await evaluate('--capacity', '16', '--lambda', '0.3');
  expect(alone.crossEntropy).toBe(result.crossEntropy);
  expect(alone).not.toHaveProperty('crossEntropyLoss');
});

test('eval routes by every method, and leaves out what it does not read', async () => {
  const own = await evaluate('--capacity', '12', '--routing', 'original');
  const byRank = await evaluate('--capacity', '12', '--routing', 'max_rank', '--max-rank', '12', '--compare');
  expect(byRank).toMatchObject({ routing: 'max_rank', maxRank: 12, topJ: 2, eviction: 'adaptive', baseline: { crossEntropy: own.crossEntropy } });
  expect(byRank).not.toHaveProperty('rank');
  expect(byRank.missRate).toBeLessThan(own.missRate);
  const byMass = await evaluate('--capacity', '12', '--routing', 'cumulative_threshold', '--mass-threshold', '0.8');
  expect(byMass.missRate).toBeLessThan(own.missRate);
  const pruned = await evaluate('--capacity', '12', '--routing', 'pruned', '--top-j', '1');
  expect(pruned.dropRate).toBeGreaterThan(0);
  expect(pruned.missRate).toBeCloseTo(pruned.misses / (512 * 4 * 6), 12);
  expect(await evaluate('--routing', 'sensitivity', '--seed', '4')).toMatchObject({ rank: 4, seed: 4, swapRate: 0.25 });
});

test('eval takes λ and topJ per layer, and leaves the first layers alone', async () => {
  const { perLayer, ...rest } = await evaluate('--capacity', '8', '--lambda', '0.3,0.3,0,0.3,0.3,0.3', '--top-j', '0,0,0,0,4,0', '--first-biased-layer', '1');
  expect(perLayer.map((layer) => layer.swapRate > 0)).toEqual([false, true, false, true, false, true]);
  expect(rest).toMatchObject({ lambda: [0.3, 0.3, 0, 0.3, 0.3, 0.3], topJ: [0, 0, 0, 0, 4, 0], firstBiasedLayer: 1 });
});

test('eval evicts by the policy asked for, which changes the misses alone', async () => {
  const [lru, lfu, lfru, adaptive] = await Promise.all([['lru'], ['lfu', '--half-life', '64'], ['lfru'], ['adaptive']].map((flags) => evaluate('--capacity', '12', '--eviction', ...flags)));
  for (const other of [lfu, lfru, adaptive]) {
    expect(other!.misses).toBeLessThan(lru!.misses);
    expect(other!.crossEntropy).toBe(lru!.crossEntropy);
  }
});

test('eval scores what follows each window\'s prompt, and lists its windows', async () => {
  const flags = ['--capacity', '12', '--lambda', '0.3', '--prompt-tokens', '128', '--windows', '--compare'];
  interface Windowed extends Evaluated { promptTokens: number; windows: { hits: number; misses: number; nll: number; rangeMeans: number[] }[]; }
  const own = await evaluate(...flags) as Windowed;
  const bent = await evaluate(...flags, '--bias-prefill') as Windowed;
  for (const { tokens, windows, misses, hits, promptTokens } of [own, bent]) {
    expect([tokens, promptTokens, windows.length, misses + hits]).toEqual([256, 128, 2, 256 * 4 * 6]);
    expect(windows.reduce((sum, window) => sum + window.misses, 0)).toBe(misses);
    expect(windows[1]!.rangeMeans).toHaveLength(6);
  }
  expect(bent.crossEntropy).not.toBe(own.crossEntropy);
  expect(bent.baseline).toEqual(own.baseline);
  const { code, stderr } = await run('engine', 'eval', '--model', MODEL, '--text', TEXT, '--prompt-tokens', '256');
  expect([code, stderr]).toEqual([2, expect.stringContaining('--prompt-tokens: 256 leaves nothing to score')]);
});

test('eval takes a budget of bytes, and everything where none is given', async () => {
  const experts = (512 * 1024 * 12) / 78_336;
  const { capacities } = await evaluate('--cache-mib', '6');
  expect(capacities.reduce((sum, capacity) => sum + capacity, 0)).toBe(Math.floor(experts));
  expect((await evaluate()).capacities).toEqual(Array(6).fill(32));
});

test('eval scores as many whole windows as the text gives', async () => {
  const text = join(folder, 'part.txt');
  writeFileSync(text, readFileSync(TEXT, 'utf8').slice(0, 6000));
  const { tokens } = await json<Evaluated>('engine', 'eval', '--model', MODEL, '--text', text, '--context', '128', '--threads', '1');
  expect(tokens % 128).toBe(0);
  expect(tokens).toBeGreaterThan(1000);
  // One more window would need more tokens than the text has.
  const { code, stdout, stderr } = await run('engine', 'eval', '--model', MODEL, '--text', text, '--context', '128', '--tokens', String(tokens + 128), '--json');
  expect(stderr).toMatch(/part.txt: the text has \d+ tokens, too short to score/);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('generate prints the text, and counts its misses and flash bytes', async () => {
  const flags = ['engine', 'generate', '--model', MODEL, '--prompt', 'The city was founded in', '--tokens', '24', '--capacity', '8', '--threads', '1'];
  const result = await json<Record<string, number> & { text: string; finishReason: string }>(...flags);
  expect(result).toMatchObject({ completionTokens: 24, finishReason: 'length', lambda: 0 });
  expect(result['hits']! + result['misses']!).toBe(23 * 4 * 6);
  expect(result['flashBytes']).toBe((result['misses']! + result['prefillMisses']!) * 78_336);
  expect(result['tokensPerSecond']).toBeGreaterThan(0);
  const { stdout } = await run(...flags);
  expect(stdout.startsWith(result.text)).toBe(true);
  expect(stdout).toMatch(/tokens +24 after a prompt of \d+ \(length\)/);
});

test('generate counts what pruning dropped', async () => {
  const result = await json<Record<string, number>>('engine', 'generate', '--model', MODEL, '--prompt', 'The city was founded in', '--tokens', '24', '--capacity', '8',
    '--threads', '1', '--routing', 'pruned', '--top-j', '1', '--bias-prefill');
  expect(result['dropped']).toBeGreaterThan(0);
  expect(result['hits']! + result['misses']! + result['dropped']!).toBe(23 * 4 * 6);
  expect(result['flashBytes']).toBe((result['misses']! + result['prefillMisses']!) * 78_336);
  expect(result).toMatchObject({ biasPrefill: true, routing: 'pruned' });
});

test.each([
  ['a list that is not one value per layer', ['--lambda', '0.1,0.2'], /--lambda: 2 values for 6 layers/],
  ['a rank above top-K', ['--routing', 'sensitivity', '--rank', '5'], /--rank: 5 is more than the 4 experts/],
  ['a highest rank below top-K', ['--routing', 'max_rank', '--max-rank', '3'], /--max-rank: 3 is outside 4/],
  ['more layers than there are', ['--first-biased-layer', '7'], /--first-biased-layer: 7 is more than the 6 layers/],
  ['pruning without a kept expert', ['--routing', 'pruned', '--top-j', '0'], /topJ: 'pruned' needs 1 or more/],
  ['a capacity below top-K', ['--capacity', '3'], /--capacity: 3 is outside 4 to 32/],
  ['a capacity above all experts', ['--capacity', '33'], /--capacity: 33 is outside 4 to 32/],
  ['a cache below a token cycle', ['--cache-mib', '0.5'], /cache of 524288 bytes is below/],
  ['a topJ above top-K', ['--top-j', '5'], /--top-j: 5 is more than the 4 experts/],
])('refuses %s', async (_, flags, text) => {
  const { code, stdout, stderr } = await run('engine', 'eval', '--model', MODEL, '--text', TEXT, '--tokens', '256', ...flags, '--json');
  expect(stderr).toMatch(text);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test.each([['not a model', 'this is no GGUF'], ['cut', readFileSync(MODEL).subarray(0, 100_000)]])('refuses a model file that is %s, and names it', async (name, content) => {
  const path = join(folder, `${name}.gguf`);
  writeFileSync(path, content);
  const { code, stdout, stderr } = await run('engine', 'inspect', '--model', path, '--json');
  expect(stderr).toContain(path);
  expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('refuses a model that is not there, and names it', async () => {
  const { code, stderr } = await run('engine', 'generate', '--model', '/nowhere/m.gguf', '--prompt', 'x');
  expect(stderr).toBe('moefleet: /nowhere/m.gguf: cannot read the model file (no such file)\n');
  expect(code).toBe(2);
});

test('widen writes a larger model that does the same', async () => {
  const wide = join(folder, 'wide.gguf');
  const { bytes } = await json<{ bytes: number }>('model', 'widen', MODEL, wide, '--width', '512');
  expect(statSync(wide).size).toBe(bytes);
  const flags = ['--text', TEXT, '--tokens', '256', '--lambda', '0.2', '--capacity', '12', '--threads', '1'];
  const [narrow, widened] = [await json<Evaluated>('engine', 'eval', '--model', MODEL, ...flags), await json<Evaluated>('engine', 'eval', '--model', wide, ...flags)];
  expect(Math.abs(widened.crossEntropy - narrow.crossEntropy)).toBeLessThan(0.002);
  const { code, stderr } = await run('model', 'widen', MODEL, wide, '--width', '512');
  expect(stderr).toContain(wide);
  expect(code).toBeGreaterThan(0);
});

describe('from the shell', () => {
  const shell = (...args: string[]): ChildProcess => spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = (child: ChildProcess) => new Promise<{ code: number | null; signal: string | null }>((resolve) => child.once('close', (code, signal) => resolve({ code, signal })));

  test('Ctrl-C ends an evaluation with 130, without a partial answer and without leaving the engine behind', async () => {
    const child = shell('engine', 'eval', '--model', MODEL, '--text', TEXT, '--threads', '1', '--json');
    let output = '';
    child.stdout!.on('data', (data: Buffer) => { output += data.toString(); });
    // The first line of progress says that the engine is at work.
    await new Promise<void>((resolve) => child.stderr!.once('data', () => resolve()));
    const engines = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ');
    expect(engines).toHaveLength(1);
    child.kill('SIGINT');
    expect(await ended(child)).toEqual({ code: 130, signal: null });
    expect(output).toBe('');
    expect(() => process.kill(Number(engines[0]), 0)).toThrow('ESRCH');
  });

  test('a reader that leaves early is no error', async () => {
    const child = shell('--help');
    child.stdout!.destroy();
    let said = '';
    child.stderr!.on('data', (data: Buffer) => { said += data.toString(); });
    expect(await ended(child)).toEqual({ code: 0, signal: null });
    expect(said).toBe('');
  });

  test('an engine that dies is told with the file it died of', async () => {
    const child = shell('engine', 'eval', '--model', MODEL, '--text', TEXT, '--threads', '1', '--json');
    let said = '';
    child.stderr!.on('data', (data: Buffer) => { said += data.toString(); });
    await new Promise<void>((resolve) => child.stderr!.once('data', () => resolve()));
    process.kill(Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim()), 'SIGABRT');
    expect((await ended(child)).code).toBe(1);
    expect(said).toMatch(/tinymoe-17m-q8_0.gguf: the native engine ended by itself \(SIGABRT\)/);
  });
});
