/** A short run of what `npm run fuzz:gateway` does at length. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { join } from 'node:path';
import { REPO } from '../harness/paths';
import type { FuzzFigures } from './fuzz/gateway-fuzz';

const MAIN = join(REPO, 'test', 'load', 'dist', 'fuzz', 'main.js');

async function fuzz(...flags: string[]): Promise<FuzzFigures> {
  const { stdout } = await promisify(execFile)(process.execPath, [MAIN, '--json', '--seed', '7', ...flags], { timeout: 110_000 });
  return JSON.parse(stdout) as FuzzFigures;
}

test('hostile peers leave the coordinator up, honest agents undisturbed, and get in under nobody else\'s id', async () => {
  const figures = await fuzz('--messages', '4000');
  expect(figures).toMatchObject({ serverUp: true, undisturbed: figures.honest, acknowledged: figures.honest, letIn: [], trespassers: [], internal: {} });
  expect(figures.messages).toBeGreaterThanOrEqual(4000);
  expect(figures.intrusions).toBeGreaterThan(0);
  // INVALID_ARGUMENT, ALREADY_EXISTS: turned away for what they did, by name.
  expect(figures.statuses).toMatchObject({ 3: expect.any(Number), 6: expect.any(Number) });
});

test('certificates and tokens of others, revoked, expired, used up or replayed let nobody in', async () => {
  const figures = await fuzz('--messages', '2000', '--tls');
  expect(figures).toMatchObject({ serverUp: true, undisturbed: figures.honest, acknowledged: figures.honest, letIn: [], trespassers: [], enrolled: { letIn: 3, uses: 3 }, internal: {} });
  expect(figures.intrusions).toBeGreaterThan(20);
  // PERMISSION_DENIED, UNAUTHENTICATED
  expect(figures.statuses).toMatchObject({ 7: expect.any(Number), 16: expect.any(Number) });
});
