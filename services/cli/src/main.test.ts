import { VERSION } from '@moefleet/runtime';
import { freePort } from '../../../test/harness/ports';
import { runCaptured } from './testing/run-captured';

test.each([
  [['lambda', 'set', '2', '--all'], /'2'.*number from 0 to 1/],
  [['lambda', 'set', '', '--all'], /number from 0 to 1/],
  [['lambda', 'set', '0.2'], /--all, --device ID or --selector/],
  [['lambda', 'set', '0.2', '--all', '--device', 'a'], /exclude each other/],
  [['lambda', 'set', '0.2', '--selector', 'class phone'], /"class phone" is no selector: at character 7: expected/],
  [['lambda', 'set', '0.2', '--selector', ''], /at character 1: expected a label key/],
  [['lambda', 'set', '0.2', '--all', '--top-j', '1.5'], /'1.5'.*integer/],
  [['lambda', 'set', '0.2', '--all', '--timeout', '700'], /--timeout.*'700'.*number from 0.1 to 600/],
  [['cache', 'set', '--capacity', '65536', '--all'], /--capacity.*'65536'.*integer from 1 to 65535/],
  [['cache', 'set', '--all'], /either a size/],
  [['cache', 'set', '8MiB', '--capacity', '3', '--all'], /either a size/],
  [['cache', 'set', '8 parsecs', '--all'], /8MiB or 1.5GiB/],
  [['tracing', 'set', '-1', '--all'], /unknown option '-1'|number from 0 to 1/],
  [['devices', 'show'], /missing required argument 'id'/],
  [['devices', '--operator', 'nowhere'], /"nowhere" is not an address/],
  [['devices', '--operator', '127.0.0.1:99999'], /is not an address/],
  [['measure', 'a'], /nothing to measure/],
  [['measure', 'a', '--prompt', ' '], /prompt 1 is empty/],
  [['measure', 'a', '--prompts', '/nowhere/p.txt'], /\/nowhere\/p.txt: no such file/],
  [['engine', 'eval', '--model', 'm.gguf'], /--text <file>' not specified/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', '/nowhere/t.txt'], /\/nowhere\/t.txt: no such file/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--tokens', '300'], /300 is not a multiple of --context 256; use 256/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--lambda', '1.1'], /'1.1'.*number from 0 to 1/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--routing', 'magic'], /original, cache_prior, max_rank, cumulative_threshold, pruned, sensitivity/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--lambda', '0.1,2'], /'0.1,2'.*number from 0 to 1/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--eviction', 'fifo'], /lru, lfu, lfru/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--rank', '0'], /integer from 1/],
  [['engine', 'eval', '--model', 'm.gguf', '--text', 't', '--capacity', '4', '--cache-mib', '4'], /cannot be used with/],
  [['model', 'widen', 'a', 'b'], /--width/],
  [['frobnicate'], /unknown command 'frobnicate'/],
  [['devices', '--frobnicate'], /unknown option '--frobnicate'/],
])('refuses %j with exit code 2, one line on standard error and nothing on standard output', async (args, line) => {
  const { code, stdout, stderr } = await runCaptured(args);
  expect(stderr).toMatch(line);
  expect(stderr.trimEnd().split('\n')).toHaveLength(1);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('refuses a text that is not UTF-8 before it looks at the model', async () => {
  const { code, stderr } = await runCaptured(['engine', 'eval', '--model', 'm.gguf', '--text', process.execPath]);
  expect(stderr).toMatch(/is not UTF-8 text/);
  expect(code).toBe(2);
});

test('says how to get a coordinator where none listens', async () => {
  const operator = `127.0.0.1:${await freePort()}`;
  const { code, stdout, stderr } = await runCaptured(['devices', '--json'], { MOEFLEET_OPERATOR: operator });
  expect(stderr).toBe(`moefleet: cannot reach the coordinator at ${operator}; start one with \`moefleet coordinator run\` or name it with --operator\n`);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
});

test('prints its version and a help that teaches', async () => {
  expect(await runCaptured(['--version'])).toEqual({ code: 0, stdout: `${VERSION}\n`, stderr: '' });
  const { code, stdout } = await runCaptured(['--help']);
  expect(code).toBe(0);
  expect(stdout).toContain('moefleet lambda set 0.25 --all');
  expect((await runCaptured(['lambda', 'set', '--help'])).stdout).toContain('Exit code 0: all applied');
});
