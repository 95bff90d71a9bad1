/** Router windows from a device's decoding to a replay of them: enabled, recorded, sent in parts, kept, replayed, deleted. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { RunningAgent } from '../../services/demo/src/local-fleet';
import { until } from '../harness/ports';
import { complete, TestFleet } from '../harness/test-fleet';

interface WindowsJson { windows: { windowId: string; tokens: number; lambda: number; capacities: number[]; bytes: number }[]; mostBytes: number }
interface ReplayJson { kind: string; events: number; recordedUnderPull: boolean; rows: { capacity: number; lambda: number; missRate: number; missRateBand: { low: number; high: number } | null; tokensPerSecond: number | null }[] }

let fleet: TestFleet;
let agent: RunningAgent;
beforeAll(async () => {
  fleet = await new TestFleet().start();
  agent = await fleet.agent('phone-1');
  await fleet.online('phone-1');
});
afterAll(() => fleet?.stop());

const kept = async () => (await fleet.cli<WindowsJson>('windows', 'list', 'phone-1')).windows;
const spooled = () => readdirSync(join(fleet.folder, 'state', 'phone-1', 'windows'));

test('a device sends nothing until it is asked to', async () => {
  await complete(agent.httpUrl, { tokens: 40 });
  expect([await kept(), spooled()]).toEqual([[], []]);
});

test('an enabled device sends windows, and a replay of them answers what-ifs', async () => {
  await fleet.cli('windows', 'enable', 'phone-1', '--tokens', '16');
  await complete(agent.httpUrl, { tokens: 70 });
  await until('four windows are kept', async () => (await kept()).length === 4);
  expect((await kept())[0]).toMatchObject({ tokens: 16, lambda: 0, capacities: expect.any(Array) });
  await until('nothing waits on the device', () => spooled().length === 0);
  const replayed = await fleet.cli<ReplayJson>('replay', '--device', 'phone-1', '--capacity', '8,16', '--lambda', '0,0.2', '--compute-ms', '10', '--miss-ms', '1');
  expect(replayed).toMatchObject({ kind: 'quantised scores', events: 4 * 16 * 6, recordedUnderPull: false });
  const of = (lambda: number, capacity: number) => replayed.rows.find((row) => row.lambda === lambda && row.capacity === capacity)!;
  expect(of(0.2, 8).missRate).toBeLessThan(of(0, 8).missRate);
  expect(of(0, 16).missRate).toBeLessThan(of(0, 8).missRate);
  expect(of(0.2, 8).tokensPerSecond).toBeGreaterThan(of(0, 8).tokensPerSecond!);
  expect(of(0.2, 8).missRateBand!.high).toBeGreaterThan(of(0.2, 8).missRate);
});

test('deleted and disabled there are none, here or on the device, and the audit log says who', async () => {
  await fleet.cli('windows', 'disable', 'phone-1');
  const deleted = await fleet.cli<{ windows: number; bytes: number }>('windows', 'delete', 'phone-1', '--why', 'the owner asked');
  expect(deleted.windows).toBe(4);
  expect(deleted.bytes).toBeGreaterThan(1000);
  await complete(agent.httpUrl, { tokens: 40 });
  expect([await kept(), spooled()]).toEqual([[], []]);
  const { entries } = await fleet.cli<{ entries: { what: string; why: string }[] }>('audit', '--limit', '20');
  expect(entries).toContainEqual(expect.objectContaining({ what: 'delete the router windows of device phone-1', why: 'the owner asked' }));
});
