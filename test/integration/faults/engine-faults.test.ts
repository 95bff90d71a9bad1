/** The same faults where agent and engine are the real ones, on the reference model. An engine that is stopped holds an apply. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { RunningAgent } from '../../../services/demo/src/local-fleet';
import { engineHostPid } from '../../harness/engine-host-pid';
import { until } from '../../harness/ports';
import { complete, TestFleet } from '../../harness/test-fleet';

const ID = 'phone-1';
let fleet: TestFleet;
let agent: RunningAgent;
let lambda = 0.1;

beforeAll(async () => {
  fleet = await new TestFleet().start();
  agent = await fleet.agent(ID);
  await fleet.online(ID);
  await fleet.cli('lambda', 'set', '0.1', '--all');
});
afterAll(() => fleet?.stop());

const newest = (name: string) => fleet.fleet.children.filter((child) => child.name === name).at(-1)!;
const engine = (signal: NodeJS.Signals) => process.kill(engineHostPid(agent.child.pid!), signal);

async function kill(name: string): Promise<void> {
  const child = newest(name);
  const host = name === ID ? engineHostPid(child.pid!) : null;
  child.signal('SIGKILL');
  await until(`${name} has ended`, () => child.ended);
  // Only one that runs notices that its agent has gone.
  if (host !== null) process.kill(host, 'SIGCONT');
}

/** With the same state; what it served last is what it runs from its start on. */
async function startAgent(): Promise<void> {
  agent = await fleet.agent(ID);
}

const CHOSEN: [string, () => Promise<void>][] = [
  ['the engine is killed', async () => { engine('SIGKILL'); }],
  ['agent and coordinator are killed', async () => {
    await Promise.all([kill(ID), kill('coordinator')]);
    await startAgent();
    const restored = await agent.child.logLine('running the last good spec from disk');
    expect(restored['origin']).toContain(`lambda ${lambda}`);
    await fleet.fleet.startCoordinator();
  }],
];
/** With MOEFLEET_FAULTS=all. */
const MORE: typeof CHOSEN = [
  ['Redis is stopped for longer than a command waits', async () => {
    newest('redis').signal('SIGSTOP');
    engine('SIGCONT');
    await sleep(2500);
    newest('redis').signal('SIGCONT');
  }],
  ['the agent is killed', async () => {
    await kill(ID);
    await startAgent();
  }],
  ['the coordinator is killed', async () => {
    await kill('coordinator');
    engine('SIGCONT');
    await fleet.fleet.startCoordinator();
  }],
];

test.each(process.env['MOEFLEET_FAULTS'] === 'all' ? [...CHOSEN, ...MORE] : CHOSEN)('while a spec is being applied, %s', async (_, strike) => {
  const next = Math.round(10 * lambda + 1) / 10;
  const before = await fleet.device(ID);
  engine('SIGSTOP');
  // The operator's command waits for the device, or learns that the coordinator has gone.
  const told = fleet.cli('lambda', 'set', String(next), '--all').catch(() => {});
  await until('it is being applied', async () => (await fleet.device(ID)).desiredGeneration > before.desiredGeneration);
  await strike();
  const device = await until(`it runs lambda ${next}`, async () => {
    const now = await fleet.device(ID);
    return now.online && !now.drift && now.reported?.effective.lambda === next ? now : null;
  }, 40_000);
  expect(device.reported!.appliedGeneration).toBe(device.desiredGeneration);
  expect(device.desiredGeneration).toBeGreaterThan(before.desiredGeneration);
  expect((await complete(agent.httpUrl, { tokens: 4 })).completionTokens).toBe(4);
  await told;
  lambda = next;
});
