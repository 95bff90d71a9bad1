import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Captured, runCaptured } from '../testing/run-captured';

const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const TEXT = join(FIXTURES, 'wikitext.txt');

let folder: string;
let model: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-fit-'));
  model = join(folder, 'model.gguf');
  copyFileSync(join(FIXTURES, 'tinymoe-17m-q8_0.gguf'), model);
});
afterAll(() => rmSync(folder, { recursive: true }));

const fit = (...args: string[]): Promise<Captured> => runCaptured(['model', 'fit-prefetch', model, '--text', TEXT, '--threads', '1', ...args]);

test('fits a map beside the model, which the engine then foretells by', async () => {
  const { code, stdout, stderr } = await fit('--tokens', '6400', '--context', '128', '--capacity', '13', '--json');
  if (code !== 0) throw new Error(stderr);
  const fitted = JSON.parse(stdout) as { path: string; bytes: number; fittedTokens: number; heldOutTokens: number; recallBefore: number; recallAfter: number; layers: object[] };
  expect(fitted).toMatchObject({ path: `${model}.prefetch`, fittedTokens: 5760, heldOutTokens: 640 });
  expect(statSync(fitted.path).size).toBe(fitted.bytes);
  expect(fitted.layers).toHaveLength(5);
  expect(fitted.recallAfter).toBeGreaterThan(fitted.recallBefore);
  const generated = await runCaptured(['engine', 'generate', '--model', model, '--prompt', 'The', '--tokens', '8', '--capacity', '13', '--threads', '1', '--prefetch', 'on', '--json']);
  expect(JSON.parse(generated.stdout)).toMatchObject({ prefetch: 'on', prefetched: { active: true, fitted: true, gain: null } });
});

test('says what is wrong with its arguments, and leaves no file', async () => {
  rmSync(`${model}.prefetch`, { force: true });
  expect(await fit('--tokens', '128', '--context', '128')).toMatchObject({ code: 2, stderr: expect.stringMatching(/leave none to fit/) });
  expect(await fit('--tokens', '1280', '--context', '128', '--capacity', '2')).toMatchObject({ stderr: expect.stringMatching(/capacity: expected 4 to 32, found 2/) });
  expect(existsSync(`${model}.prefetch`)).toBe(false);
});
