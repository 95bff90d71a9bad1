/** A small load through the same command that measures large ones. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { join } from 'node:path';
import { REPO } from '../harness/paths';
import type { LoadFigures } from './load-run';

const run = promisify(execFile);
const MAIN = join(REPO, 'test', 'load', 'dist', 'main.js');

async function load(...flags: string[]): Promise<LoadFigures> {
  const { stdout } = await run(process.execPath, [MAIN, '--json', ...flags], { timeout: 110_000 });
  return JSON.parse(stdout) as LoadFigures;
}

test('200 hollow agents connect, apply every λ, and every frame they send is counted', async () => {
  const figures = await load('--agents', '200', '--seconds', '4', '--interval', '1000', '--pushes', '2');
  expect(figures).toMatchObject({ agents: 200, connected: 200, acknowledged: 200, tcpConnections: 200, framesShed: 0, falseOffline: 0, streamsEnded: {} });
  expect(figures.framesSent).toBeGreaterThanOrEqual(200);
  expect(figures.framesCounted).toBe(figures.framesSent);
});

test('over TLS each agent has a session and a certificate of its own, and λ is changed with the first admin\'s token', async () => {
  const figures = await load('--agents', '40', '--tls', '--seconds', '2', '--interval', '1000', '--pushes', '1');
  expect(figures).toMatchObject({ connected: 40, acknowledged: 40, tcpConnections: 40, tlsSessions: 40, certificates: 40, framesShed: 0, falseOffline: 0 });
});

test('of two coordinators the one that drives a rollout is killed: all come back to the other, the rollout goes on to its end, and no token is counted twice', async () => {
  const { kill } = await load('--agents', '40', '--seconds', '2', '--interval', '1000', '--pushes', '1', '--kill-coordinator');
  expect(kill).toMatchObject({ consistent: true, rollout: { state: 'DONE' }, applied: 40, falseOffline: 0 });
  expect(kill!.tokensTold).toBeGreaterThan(0);
  expect(kill!.tokensCounted).toBe(kill!.tokensTold);
});

test('agents that stop reading, vanish and restart disturb no other', async () => {
  const figures = await load('--agents', '60', '--seconds', '4', '--interval', '500', '--pushes', '0', '--stalled', '5', '--vanishing', '5', '--churn', '5');
  expect(figures).toMatchObject({ connected: 60, falseOffline: 0, framesShed: 0 });
});

test('says what is wrong with a flag', async () => {
  await expect(load('--agents', 'many')).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('--agents many: expected a whole number from 1 to 100000') });
});
