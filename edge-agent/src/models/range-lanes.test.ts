import { FEW_LANES, MANY_LANES, RangeLanes } from './range-lanes';

let nowMs = 0;
const never = new AbortController().signal;

/** Windows on a link that brings `rateOf(lanes)` bytes a second: the number of lanes after each. */
async function along(lanes: RangeLanes, windows: number, rateOf: (count: number) => number): Promise<number[]> {
  const counts: number[] = [];
  for (let at = 0; at < windows; at += 1) {
    await lanes.run(async () => {
      const bytes = 15 * rateOf(lanes.count);
      nowMs += 15_000;
      lanes.arrived(bytes);
    }, never);
    counts.push(lanes.count);
  }
  return counts;
}

test('on a link whose connections mostly pause there are many, and few again when it has become a good one', async () => {
  const lanes = new RangeLanes(() => nowMs);
  expect(await along(lanes, 20, (count) => 2_000 * count)).toEqual(new Array<number>(20).fill(MANY_LANES));
  expect((await along(lanes, 3, () => 5e6)).at(-1)).toBe(FEW_LANES);
});

test('where many bring nothing there are few, and it is tried again only after a while', async () => {
  const counts = await along(new RangeLanes(() => nowMs), 60, () => 60_000);
  expect(counts.slice(0, 5)).toEqual([MANY_LANES, MANY_LANES, FEW_LANES, FEW_LANES, FEW_LANES]);
  expect([counts.slice(3, 40).includes(MANY_LANES), counts.slice(40).includes(MANY_LANES)]).toEqual([false, true]);
});

test('where many have stopped to bring more, few do', async () => {
  const lanes = new RangeLanes(() => nowMs);
  await along(lanes, 5, (count) => 2_000 * count);
  expect((await along(lanes, 50, () => 60_000)).at(-1)).toBe(FEW_LANES);
});

test('a fast link, and a coordinator without time, get few', async () => {
  expect(await along(new RangeLanes(() => nowMs), 3, () => 5e6)).toEqual([4, 4, 4]);
  const lanes = new RangeLanes(() => nowMs);
  await along(lanes, 3, (count) => 2_000 * count);
  lanes.refused();
  expect(await along(lanes, 3, (count) => 2_000 * count)).toEqual([4, 4, 4]);
});

test('no more run at a time than there are lanes, whoever fails or gives up, and pauses between them count for nothing', async () => {
  const lanes = new RangeLanes(() => nowMs);
  let [running, most] = [0, 0];
  const work = (fails: boolean) => lanes.run(async () => {
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setImmediate(resolve));
    running -= 1;
    if (fails) throw new Error('lost');
  }, never);
  const ended = await Promise.allSettled(Array.from({ length: 20 }, (_, at) => work(at % 3 === 0)));
  expect([most, ended.filter(({ status }) => status === 'rejected').length]).toEqual([FEW_LANES, 7]);
  const gone = new AbortController();
  gone.abort(new Error('enough'));
  await expect(lanes.run(async () => 1, gone.signal)).rejects.toThrow('enough');
  nowMs += 1e9;
  expect(await along(lanes, 1, () => 5e6)).toEqual([FEW_LANES]);
});
