/**
 * The learner with another routing than λ, end to end: the programs that run on devices, the real engine on the reference
 * model. What it proposes goes out, is in force, saves the misses it was chosen for, and is named where one asks why.
 */
import { MODEL, WIKITEXT } from '../harness/paths';
import { until } from '../harness/ports';
import { TestFleet } from '../harness/test-fleet';

const DEVICE = 'phone-1';
/** Half of the experts. */
const ROOM = '7.2MiB';
let fleet: TestFleet;

beforeAll(async () => {
  fleet = new TestFleet();
  await fleet.fleet.startRedis();
  await fleet.fleet.startCoordinator(['--learn-every', '0', '--learner-gate', 'errors==0']);
  await fleet.agent(DEVICE, { maxCache: ROOM });
  await fleet.online(DEVICE);
});
afterAll(() => fleet?.stop());

interface Measured { missRate: number; decodeTokens: number }
interface Row { routing: string; bend: string; topJ: number; missRate: number }
interface Explained { reason: string; chosen: Row | null; baseline: Row | null }

const measured = () => fleet.cli<Measured>('measure', DEVICE, '--prompt', 'The river rises in the hills and', '--prompt', 'In 1923 the company moved its', '--tokens', '64');

test('max_rank is proposed, comes into force, saves misses, and explain names it and its rank', async () => {
  const before = await measured();
  const learner = await fleet.fleet.startLearner(MODEL, WIKITEXT, ['--tokens', '512', '--routings', 'max_rank']);
  await learner.logLine('model and text read');
  await fleet.cli('learner', 'now');
  await until('the proposal is in force', async () => (await fleet.device(DEVICE)).reported?.effective.routing === 'max_rank', 60_000, 500);

  const explained = await fleet.cli<Explained>('learner', 'explain', DEVICE);
  const rank = Number(/^rank (\d+)$/.exec(explained.chosen!.bend)![1]);
  expect(rank).toBeGreaterThan(4);
  expect((await fleet.device(DEVICE)).reported!.effective).toMatchObject({ lambda: 0, maxRank: rank, topJ: explained.chosen!.topJ });
  expect(explained.chosen!.routing).toBe('max_rank');
  expect(explained.reason).toContain(`max_rank ${rank} topJ ${explained.chosen!.topJ} at capacity 16`);
  expect(explained.chosen!.missRate).toBeLessThan(explained.baseline!.missRate);
  const after = await measured();
  expect(after.decodeTokens).toBe(before.decodeTokens);
  expect(after.missRate).toBeLessThan(0.8 * before.missRate);
});
