/**
 * What keeps a fleet from talking nonsense: real agents on the reference model, a real gate. On this model λ 1 with topJ 0
 * costs about a third of perplexity and λ 0.2 next to nothing, so the first has to stop at its first stage and the
 * second to pass.
 */
import { CommandError } from '../../services/demo/src/command-line';
import { until } from '../harness/ports';
import { TestFleet } from '../harness/test-fleet';

interface StagedJson {
  id: string; state: string; reason: string; stage: number; phase: string;
  devices: { deviceId: string; stage: number; state: string; reason: string; lastGoodHash: string; findings: { gate: string; verdict: string; value: number; high: number | null; windows: number; text: string }[] }[];
}
interface Shown { rollout: StagedJson }

const IDS = ['phone-1', 'jetson-1', 'minipc-1'];
const GATE = ['--stages', '1,100%', '--gate', 'perplexityLoss<1%', '--deadline', '5m'];
const PATIENCE_MS = 100_000;
let fleet: TestFleet;

beforeAll(async () => {
  fleet = await new TestFleet().start();
  await Promise.all(IDS.map((id) => fleet.agent(id, { maxCache: '7.2MiB', labels: `class=${id.split('-')[0]}` })));
  await fleet.online(...IDS);
  await fleet.cli('lambda', 'set', '0.1', '--all');
});
afterAll(() => fleet?.stop());

const start = async (...args: string[]) => (await fleet.cli<Shown>('lambda', 'set', ...args, '--all', '--detach', ...GATE)).rollout.id;
const show = async (id: string) => (await fleet.cli<Shown>('rollout', 'show', id)).rollout;

/** At whatever it comes to rest. */
async function ends(id: string, state: string): Promise<StagedJson> {
  const rollout = await until(`${id} has ended or is held`, async () => {
    const now = await show(id);
    return ['DONE', 'ROLLED_BACK', 'SUPERSEDED', 'INCONCLUSIVE'].includes(now.state) ? now : null;
  }, PATIENCE_MS, 300);
  expect(`${rollout.state} ${rollout.reason}`).toMatch(new RegExp(`^${state} `));
  return rollout;
}

async function hashes(): Promise<Record<string, string>> {
  const { devices } = await fleet.cli<{ devices: { id: string; reported: { appliedHash: string } }[] }>('devices', 'list');
  return Object.fromEntries(devices.map((device) => [device.id, device.reported.appliedHash]));
}

test('a bad λ stops at its first stage, and every device is back at its last good spec', async () => {
  const before = await hashes();
  const back = await ends(await start('1', '--top-j', '0'), 'ROLLED_BACK');
  const [first, ...others] = back.devices;
  process.stdout.write(`    ${back.reason}\n`);
  expect(back.stage).toBe(1);
  expect(first).toMatchObject({ state: 'reverted', reason: 'runs its last good spec again', lastGoodHash: before[first!.deviceId] });
  expect(first!.findings[0]).toMatchObject({ gate: 'perplexityLoss<1%', verdict: 'fail' });
  expect(first!.findings[0]!.value).toBeGreaterThan(0.1);
  expect(others.map((device) => device.state)).toEqual(['waiting', 'waiting']);
  expect(await hashes()).toEqual(before);
});

test('λ 0.2 passes all stages, on what each device has measured', async () => {
  const done = await ends(await start('0.2'), 'DONE');
  for (const device of done.devices) {
    process.stdout.write(`    ${device.deviceId}: ${device.findings[0]!.text}\n`);
    expect(device).toMatchObject({ state: 'applied', findings: [{ verdict: 'pass' }] });
  }
  for (const id of IDS) expect((await fleet.device(id)).reported!.effective.lambda).toBe(0.2);
});

test('the coordinator is killed in the middle of a stage: the rollout goes on to its proper end', async () => {
  const before = await hashes();
  const id = await start('1', '--top-j', '0');
  await until('a device has it', async () => (await show(id)).phase === 'judging', PATIENCE_MS, 50);
  const coordinators = fleet.fleet.children.filter((child) => child.name === 'coordinator');
  coordinators.at(-1)!.signal('SIGKILL');
  await until('it has ended', () => coordinators.at(-1)!.ended);
  await expect(fleet.cli('rollout', 'show', id)).rejects.toBeInstanceOf(CommandError);
  await fleet.fleet.startCoordinator();
  await fleet.online(...IDS);
  const back = await ends(id, 'ROLLED_BACK');
  expect(back.reason).toMatch(/perplexityLoss<1% failed/);
  expect(await hashes()).toEqual(before);
});
