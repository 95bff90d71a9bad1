import { defaultLowBytes, FIRST_ANSWERS_BYTES, firstLimit, type MemorySample, nextPressure, NO_PRESSURE, type PressurePolicy, type PressureState } from './memory-pressure';

const MIB = 2 ** 20;
const policy: PressurePolicy = { lowBytes: 100 * MIB, stallPercent: 10 };
const plenty = { availableBytes: 1000 * MIB, stallPercent: 0, wantedBytes: 400 * MIB, floorBytes: 40 * MIB, heldBytes: 400 * MIB, promptBytes: 30 * MIB };

/** Plays a series of [seconds, what differs from plenty] and returns every change with its time and limit in MiB. */
function play(series: [number, Partial<MemorySample>][], from: PressureState = NO_PRESSURE) {
  let state = from;
  const changes: [number, string, number | null][] = [];
  for (const [seconds, sample] of series) {
    const next = nextPressure(state, { ...plenty, ...sample, nowMs: seconds * 1000 }, policy);
    state = next.state;
    if (next.change) changes.push([seconds, next.change.t, next.change.limitBytes === null ? null : Math.round(next.change.limitBytes / MIB)]);
  }
  return { changes, state };
}

const steady = (from: number, to: number, every: number, sample: Partial<MemorySample> = {}): [number, Partial<MemorySample>][] =>
  Array.from({ length: Math.floor((to - from) / every) + 1 }, (_, i) => [from + i * every, sample]);

test('leaves the cache alone while there is memory', () => {
  expect(play(steady(0, 3600, 1)).changes).toEqual([]);
  expect(play(steady(0, 60, 1, { availableBytes: 101 * MIB, stallPercent: 9.9 })).changes).toEqual([]);
});

test('gives back by a factor, and by all that is missing where that is more', () => {
  expect(play([[0, { availableBytes: 99 * MIB }]]).changes).toEqual([[0, 'shrink', 280]]);
  expect(play([[0, { availableBytes: 0, wantedBytes: 240 * MIB, heldBytes: 240 * MIB }]]).changes).toEqual([[0, 'shrink', 140]]);
});

test('counts from what is held, since room that was never filled frees nothing', () => {
  expect(play([[0, { availableBytes: 99 * MIB, heldBytes: 100 * MIB }]]).changes).toEqual([[0, 'shrink', 70]]);
});

test('goes on at each look while memory is low, down to one token and no further', () => {
  const { changes, state } = play([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2].map((at, i) => [at, { availableBytes: 50 * MIB, heldBytes: Math.max(40, 400 * 0.7 ** i) * MIB }]));
  expect(changes.map(([, change]) => change)).toEqual(new Array(changes.length).fill('shrink'));
  expect(changes.map(([, , limit]) => limit)).toEqual([280, 196, 137, 87, 40]);
  expect(state.limitBytes).toBe(40 * MIB);
});

test('stalls tell of the second before, so they count once a second', () => {
  const { changes } = play([0, 0.25, 0.5, 0.75, 1, 1.25].map((at) => [at, { stallPercent: 30, heldBytes: 300 * MIB }]));
  expect(changes).toEqual([[0, 'shrink', 210], [1, 'shrink', 147]]);
});

test('a kernel that knows no stalls is watched by what is available alone', () => {
  expect(play([[0, { stallPercent: null }], [1, { stallPercent: null, availableBytes: 10 * MIB }]]).changes).toHaveLength(1);
});

test('grows again in small steps after a calm, and slowly where pressure came before', () => {
  const { changes } = play([[0, { availableBytes: 99 * MIB, heldBytes: 300 * MIB }], ...steady(1, 1500, 1)]);
  expect(changes.slice(0, 4)).toEqual([[0, 'shrink', 210], [31, 'grow', 230], [41, 'grow', 250], [51, 'grow', 270]]);
  // 290 is within a tenth of the 300 at which pressure came: not before ten quiet minutes have passed.
  expect(changes[4]).toEqual([651, 'grow', 290]);
  expect(changes[5]).toEqual([1251, 'grow', 310]);
});

test('in the end everything that is wanted is granted again, and what was is forgotten', () => {
  const { changes, state } = play([[0, { availableBytes: 99 * MIB }], ...steady(1, 9000, 1)]);
  expect(changes.at(-1)!.slice(1)).toEqual(['grow', null]);
  expect(state).toMatchObject({ limitBytes: null, ceilingBytes: null });
  expect(play(steady(9001, 9100, 1), state).changes).toEqual([]);
});

test('between pressure and calm nothing moves, however long it lasts', () => {
  const { changes } = play([[0, { availableBytes: 99 * MIB, heldBytes: 200 * MIB }], ...steady(1, 600, 1, { availableBytes: 150 * MIB }), ...steady(601, 629, 1)]);
  expect(changes).toHaveLength(1);
});

test('takes no step up that would use up what makes the calm', () => {
  const { changes } = play([[0, { availableBytes: 99 * MIB, heldBytes: 200 * MIB }], ...steady(1, 600, 1, { availableBytes: 210 * MIB })]);
  expect(changes).toHaveLength(1);
});

test('a neighbour that comes and goes every minute is not met with a cache that does the same', () => {
  const series = Array.from({ length: 30 }, (_, minute) => [
    ...steady(minute * 60, minute * 60 + 2, 0.25, { availableBytes: 90 * MIB, heldBytes: 150 * MIB }), ...steady(minute * 60 + 3, minute * 60 + 59, 1),
  ]).flat() as [number, Partial<MemorySample>][];
  const grows = play(series).changes.filter(([, change]) => change === 'grow');
  expect(Math.max(...grows.map(([, , limit]) => limit!))).toBeLessThanOrEqual(150);
});

test('a spec that wants less than the limit leaves nothing to give', () => {
  const { state } = play([[0, { availableBytes: 99 * MIB }]]);
  expect(play([[1, { availableBytes: 99 * MIB, wantedBytes: 40 * MIB, heldBytes: 40 * MIB }]], state).changes).toEqual([]);
});

test('what the cache may still fill is bounded by what is left, before it is filled and without counting as pressure', () => {
  const { changes, state } = play([[0, { availableBytes: 300 * MIB, heldBytes: 100 * MIB }], [0.25, { availableBytes: 299 * MIB, heldBytes: 101 * MIB }]]);
  expect(changes).toEqual([[0, 'bound', 270]]);
  expect(state.ceilingBytes).toBeNull();
  expect(play([[0, { availableBytes: 401 * MIB, heldBytes: 100 * MIB }]]).changes).toEqual([]);
  expect(play([[0, { availableBytes: 110 * MIB, heldBytes: 5 * MIB }]]).changes).toEqual([[0, 'bound', 40]]);
});

test('where no pressure has come the cache grows as far as what is to stay free allows, and then no further', () => {
  let heldBytes = 270 * MIB;
  let state: PressureState = { ...NO_PRESSURE, limitBytes: heldBytes, changedMs: 0 };
  const limits: number[] = [];
  for (let second = 0; second < 600; second += 1) {
    const next = nextPressure(state, { ...plenty, nowMs: second * 1000, heldBytes, availableBytes: 450 * MIB - heldBytes }, policy);
    state = next.state;
    if (next.change) limits.push(next.change.limitBytes! / MIB);
    heldBytes = state.limitBytes!;
  }
  expect(limits).toEqual([290, 310]);
});

test('a model that has just been opened gets what is left without what stays free, prompts and first answers', () => {
  const opened = { availableBytes: 300 * MIB, wantedBytes: 400 * MIB, floorBytes: 40 * MIB, promptBytes: 30 * MIB };
  expect(firstLimit(opened, policy)).toBe(170 * MIB - FIRST_ANSWERS_BYTES);
  expect(firstLimit({ ...opened, availableBytes: 100 * MIB }, policy)).toBe(40 * MIB);
  expect(firstLimit({ ...opened, availableBytes: 530 * MIB + FIRST_ANSWERS_BYTES }, policy)).toBeNull();
});

test('too little is a twentieth of the memory, within bounds', () => {
  expect([96 * MIB, 512 * MIB, 4096 * MIB, 65_536 * MIB].map((total) => defaultLowBytes(total) / MIB)).toEqual([16, 64, 204.8, 1024]);
});
