/** Every command that is given nonsense ends with a code other than 0 and a line that names it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CommandError, moefleet } from '../../services/demo/src/command-line';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { MODEL, WIKITEXT } from '../harness/paths';

const folder = mkdtempSync(join(tmpdir(), 'moefleet-bad-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, bytes: Buffer | string): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

async function failure(...args: string[]): Promise<CommandError> {
  const outcome = await moefleet(args, { operator: '127.0.0.1:1' }).then(() => null, (error: CommandError) => error);
  if (!outcome) throw new Error(`moefleet ${args.join(' ')} did not fail`);
  expect(outcome.exitCode).toBeGreaterThan(0);
  expect(outcome.exitCode).toBeLessThan(128); // ended by itself, not by a signal
  expect(outcome.said).not.toMatch(/^\s+at /m); // no stack trace
  return outcome;
}

const evaluate = (model: string, ...flags: string[]): Promise<CommandError> =>
  failure('engine', 'eval', '--model', model, '--text', WIKITEXT, '--tokens', '256', ...flags);

test('a file that is no GGUF', async () => {
  const path = file('text.gguf', 'this is not a model');
  expect((await failure('engine', 'inspect', '--model', path)).said).toMatch(/text\.gguf.*(GGUF|magic)/);
});

test('a model that is not there', async () => {
  expect((await failure('engine', 'inspect', '--model', join(folder, 'none.gguf'))).said).toMatch(/none\.gguf/);
});

const model = readFileSync(MODEL);
test.each([4, 24, 1000, 60_000, model.length >> 1, model.length - 1])('a model cut off after %d bytes', async (length) => {
  expect((await failure('engine', 'inspect', '--model', file(`cut-${length}.gguf`, model.subarray(0, length)))).said).toMatch(/cut-/);
});

test('tensor sizes that lie', async () => {
  const lying = Buffer.from(model);
  const at = lying.indexOf('blk.3.ffn_up_exps.weight');
  // name, u32 dimensions, then u64 each: the third counts the experts
  lying.writeBigUInt64LE(60n, at + 'blk.3.ffn_up_exps.weight'.length + 4 + 16);
  expect((await failure('engine', 'inspect', '--model', file('lying.gguf', lying))).said).toMatch(/blk\.3\.ffn_up_exps/);
});

test.each([
  [['--capacity', '3'], /3.*4|4.*3/], [['--capacity', '33'], /33/], [['--lambda', '1.1'], /1\.1/], [['--lambda', '-0.1'], /-0\.1/],
  [['--lambda', 'NaN'], /NaN/], [['--top-j', '5'], /5/], [['--routing', 'guess'], /guess/], [['--tokens', '100'], /100/],
  [['--cache-mib', '0.5'], /0\.5|byte|MiB/],
])('eval refuses %j', async (flags, says) => {
  expect((await evaluate(MODEL, ...flags)).said).toMatch(says);
});

test('a text that is not there, or too short', async () => {
  expect((await failure('engine', 'eval', '--model', MODEL, '--text', join(folder, 'no.txt'))).said).toMatch(/no\.txt/);
  expect((await failure('engine', 'eval', '--model', MODEL, '--text', file('short.txt', 'a few words'))).said).toMatch(/short\.txt.*\d/);
});

test('no coordinator to talk to', async () => {
  const { said, exitCode } = await failure('devices', 'list');
  expect(said).toMatch(/127\.0\.0\.1:1/);
  expect(exitCode).toBe(1);
});

test('no Redis for the coordinator to start on', () => {
  const { status, stderr } = spawnSync(process.execPath, [CLI_PATH, 'coordinator', 'run', '--redis-url', 'redis://127.0.0.1:1',
    '--gateway', '127.0.0.1:0', '--operator', '127.0.0.1:0', '--http', '127.0.0.1:0'], { encoding: 'utf8', timeout: 60_000 });
  expect(status).toBe(1);
  expect(stderr).toMatch(/127\.0\.0\.1:1/);
});
