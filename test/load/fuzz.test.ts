/** A short run of what `npm run fuzz:gateway` does at length. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { join } from 'node:path';
import { REPO } from '../harness/paths';
import type { FuzzFigures } from './fuzz/gateway-fuzz';

const MAIN = join(REPO, 'test', 'load', 'dist', 'fuzz', 'main.js');

test('hostile peers leave the coordinator up, honest agents undisturbed, and get in under nobody else\'s id', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [MAIN, '--json', '--messages', '4000', '--seed', '7'], { timeout: 110_000 });
  const figures = JSON.parse(stdout) as FuzzFigures;
  expect(figures).toMatchObject({ serverUp: true, undisturbed: figures.honest, acknowledged: figures.honest, letIn: 0 });
  expect(figures.messages).toBeGreaterThanOrEqual(4000);
  expect(figures.intrusions).toBeGreaterThan(0);
  // INVALID_ARGUMENT, ALREADY_EXISTS: turned away for what they did, by name.
  expect(figures.statuses).toMatchObject({ 3: expect.any(Number), 6: expect.any(Number) });
});
