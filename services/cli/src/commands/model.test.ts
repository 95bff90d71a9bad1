import { copyFileSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ByteRate } from '../byte-rate';
import { type Captured, runCaptured } from '../testing/run-captured';

const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');

let folder: string;
let packed: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-model-'));
  packed = join(folder, 'packed.gguf');
  expect(await json('model', 'pack', MODEL, packed)).toMatchObject({ path: packed, bytes: statSync(packed).size, keptBytes: 0 });
});
afterAll(() => rmSync(folder, { recursive: true }));

const run = (...args: string[]): Promise<Captured> => runCaptured(args);
async function json<T>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await run(...args, '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as T;
}

interface Inspected {
  packVersion: number; alignment: number; expertMatrices: number; directExpertMatrices: number;
  kinds: { kind: string; type: string; tensors: number; bytes: number }[]; tensors: { name: string; offset: number; bytes: number; shape: number[] }[];
  check: { damagedCount: number; damaged: string[] } | null;
}

test('inspect tells tensors by kind and type, and how experts lie on the disk', async () => {
  const plain = await json<Inspected>('model', 'inspect', MODEL);
  expect(plain).toMatchObject({ packVersion: 0, alignment: 32, expertMatrices: 18, directExpertMatrices: 0, check: null });
  expect(plain.kinds).toContainEqual({ kind: 'expert down', type: 'q8_0', tensors: 6, bytes: 6 * 32 * 26112 });
  expect(plain.kinds.reduce((sum, { tensors }) => sum + tensors, 0)).toBe(plain.tensors.length);
  expect(plain.tensors.find(({ name }) => name === 'blk.2.ffn_gate_exps.weight')!.shape).toEqual([192, 128, 32]);
  const { stdout } = await run('model', 'inspect', MODEL);
  expect(stdout).toMatch(/checksums +none/);
  expect(stdout).toMatch(/0 of 18 expert matrices.*26112 bytes per expert/);
  const wide = join(folder, 'direct.gguf');
  expect(await json('model', 'widen', MODEL, wide, '--expert-size', '100KiB')).toMatchObject({ width: 1024 });
  expect(await json<Inspected>('model', 'inspect', wide)).toMatchObject({ directExpertMatrices: 18, packVersion: 1 });
  rmSync(wide);
});

test('inspect --verify names the expert that a byte was flipped in, and fails', async () => {
  expect(await json<Inspected>('model', 'inspect', packed, '--verify')).toMatchObject({ packVersion: 1, check: { damagedCount: 0 } });
  const damaged = join(folder, 'damaged.gguf');
  copyFileSync(packed, damaged);
  const { tensors } = await json<Inspected>('model', 'inspect', damaged);
  const down = tensors.find(({ name }) => name === 'blk.3.ffn_down_exps.weight')!;
  const file = openSync(damaged, 'r+');
  const byte = Buffer.alloc(1);
  const at = down.offset + 17 * (down.bytes / 32) + 1000;
  readSync(file, byte, 0, 1, at);
  byte[0]! ^= 4;
  writeSync(file, byte, 0, 1, at);
  const { code, stdout, stderr } = await run('model', 'inspect', damaged, '--verify', '--json');
  expect((JSON.parse(stdout) as Inspected).check).toMatchObject({ damagedCount: 1, damaged: ['blk.3 expert 17'] });
  expect(stderr).toBe(`moefleet: ${damaged}: 1 of its parts are damaged (blk.3 expert 17); fetch the file again\n`);
  expect(code).toBe(1);
  // A copy of it would carry checksums of the damage.
  const copied = await run('model', 'pack', damaged, join(folder, 'laundered.gguf'));
  expect(copied.stderr).toContain('blk.3 expert 17: checksum mismatch');
  expect(existsSync(join(folder, 'laundered.gguf'))).toBe(false);
});

test('pack goes on from what an interrupted one left, and says so', async () => {
  const target = join(folder, 'resumed.gguf');
  copyFileSync(packed, `${target}.part`);
  truncateSync(`${target}.part`, 12_345_678);
  const { stdout } = await run('model', 'pack', MODEL, target);
  expect(stdout).toContain('an earlier attempt had written 11.8 MiB');
  expect(readFileSync(target).equals(readFileSync(packed))).toBe(true);
  expect(existsSync(`${target}.part`)).toBe(false);
});

test('quantize writes experts in fewer bits, and measures on a text what that costs', async () => {
  const target = join(folder, 'q4.gguf');
  const flags = ['--type', 'q4_0', '--down-type', 'q5_0', '--allow-requantize', '--threads', '1', '--eval', join(FIXTURES, 'wikitext.txt'), '--tokens', '1024'];
  const result = await json<{ bytes: number; relativeError: number; loss: Record<string, number> & { before: { crossEntropy: number }; after: { crossEntropy: number } } }>(
    'model', 'quantize', MODEL, target, ...flags);
  expect(result).toMatchObject({ path: target, type: 'q4_0', downType: 'q5_0', bytes: statSync(target).size, loss: { tokens: 1024 } });
  expect(result.relativeError).toBeGreaterThan(0.01);
  const { before, after, crossEntropyLoss, crossEntropyLossStderr, perplexityLossPercent } = result.loss;
  expect(crossEntropyLoss).toBeCloseTo(after.crossEntropy - before.crossEntropy, 12);
  expect(crossEntropyLoss).not.toBe(0);
  expect(crossEntropyLossStderr).toBeGreaterThan(0);
  expect(perplexityLossPercent).toBeCloseTo(Math.expm1(crossEntropyLoss!) * 100, 9);
  const { kinds } = await json<Inspected>('model', 'inspect', target);
  expect(kinds.filter(({ kind }) => kind.startsWith('expert ')).map(({ kind, type }) => `${kind} ${type}`).sort()).toEqual(['expert down q5_0', 'expert gate q4_0', 'expert up q4_0']);
});

test.each<[string, (at: (name: string) => string) => string[], RegExp]>([
  ['a target that is there', () => ['pack', MODEL, packed], /packed\.gguf: exists already; .*--force/],
  ['a source that is not', (at) => ['pack', at('none.gguf'), at('x.gguf')], /none\.gguf: cannot read the model file \(no such file\)/],
  ['a source that is no model', (at) => ['pack', join(FIXTURES, 'math.txt'), at('x.gguf')], /math\.txt: not a GGUF file/],
  ['a source cut short', (at) => ['pack', at('short.gguf'), at('x.gguf')], /truncated/],
  ['an inspection of no model', () => ['inspect', join(FIXTURES, 'code.txt')], /code\.txt: not a GGUF file/],
  ['a verification without checksums', () => ['inspect', MODEL, '--verify'], /no checksums to verify; .*moefleet model pack/],
  ['a type that does not fit', (at) => ['quantize', MODEL, at('x.gguf'), '--type', 'q4_k'], /rows have 128; types that fit: .*q4_0.*q8_0/],
  ['a type that is none', (at) => ['quantize', MODEL, at('x.gguf'), '--type', 'q4'], /'q4' is unknown.*q4_0/],
  ['experts that are quantised already', (at) => ['quantize', MODEL, at('x.gguf'), '--type', 'q4_0'], /is quantised already \(q8_0\).*--allow-requantize/],
  ['no type', (at) => ['quantize', MODEL, at('x.gguf')], /--type <type>' not specified/],
  ['a text that is not there', (at) => ['quantize', MODEL, at('x.gguf'), '--type', 'q4_0', '--eval', '/nowhere/t.txt'], /t\.txt: no such file/],
  ['no width', (at) => ['widen', MODEL, at('x.gguf')], /give one of --width, --expert-size and --total/],
  ['two widths', (at) => ['widen', MODEL, at('x.gguf'), '--width', '512', '--total', '1GiB'], /cannot be used with/],
  ['a width that is no multiple of a block', (at) => ['widen', MODEL, at('x.gguf'), '--width', '500'], /multiple of 32.*found 500; use 512/],
  ['a width below the present one', (at) => ['widen', MODEL, at('x.gguf'), '--width', '96'], /above the present 128.*found 96/],
  ['a size that no width reaches', (at) => ['widen', MODEL, at('x.gguf'), '--expert-size', '900GiB'], /966367641600 bytes are out of reach/],
])('refuses %s with exit code 2, one line on standard error and no file', async (_, args, line) => {
  writeFileSync(join(folder, 'short.gguf'), readFileSync(MODEL).subarray(0, 5_000_000));
  const { code, stdout, stderr } = await run('model', ...args((name) => join(folder, name)));
  expect(stderr).toMatch(line);
  expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(existsSync(join(folder, 'x.gguf')) || existsSync(join(folder, 'x.gguf.part'))).toBe(false);
});

test('progress in bytes tells sizes, speed and what is left', () => {
  let now = 1000;
  const rate = new ByteRate(() => now);
  const MIB = 1024 ** 2;
  expect(rate.text({ done: 10 * MIB, total: 1000 * MIB })).toBe('10.0 MiB of 1000.0 MiB');
  now += 2000;
  expect(rate.text({ done: 210 * MIB, total: 1000 * MIB })).toBe('210.0 MiB of 1000.0 MiB, 100.0 MiB/s, 8 s left');
  now += 100_000;
  expect(rate.text({ done: 220 * MIB, total: 1000 * MIB })).toContain('6 min 19 s left');
});
