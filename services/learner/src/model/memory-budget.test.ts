import fc from 'fast-check';
import { type MemorySight, type MemoryState, observeMemory } from './memory-budget';

const CALM: MemorySight = { limitBytes: 1000, floorBytes: 100, inForceBytes: 1000, cutBytes: null, newShrinks: 0, nowMs: 0 };
const MINUTE = 60_000;

function run(from: MemoryState | null, minutes: number, startMs: number, changed: Partial<MemorySight> = {}): MemoryState {
  let state = from;
  for (let minute = 0; minute <= minutes; minute += 1) state = observeMemory(state, { ...CALM, ...changed, nowMs: startMs + minute * MINUTE });
  return state!;
}

test('begins with what the device allows, and keeps it while memory is not short', () => {
  expect(run(null, 60, 0)).toMatchObject({ safeBytes: 1000, badBytes: null, shortages: 0 });
});

test('gives a fifth back at once when memory runs short, once per shortage', () => {
  const short = observeMemory(run(null, 1, 0), { ...CALM, newShrinks: 1, nowMs: 2 * MINUTE });
  expect(short).toMatchObject({ safeBytes: 800, badBytes: 1000, shortages: 1 });
  expect(observeMemory(short, { ...CALM, newShrinks: 2, cutBytes: 500, nowMs: 2 * MINUTE + 10_000 })).toMatchObject({ safeBytes: 800, shortages: 1 });
  expect(observeMemory(short, { ...CALM, newShrinks: 1, nowMs: 10 * MINUTE })).toMatchObject({ safeBytes: 640, badBytes: 800, shortages: 2 });
});

test('asks for what the device holds while its cut stands, and takes that for no new shortage', () => {
  const cut = { ...CALM, inForceBytes: 700, cutBytes: 700 };
  const short = observeMemory(null, { ...cut, newShrinks: 1 });
  expect(short.safeBytes).toBe(800);
  expect(observeMemory(short, { ...cut, nowMs: 50_000 }).safeBytes).toBe(800);
  const standing = run(short, 60, 5 * MINUTE, cut);
  expect(standing).toMatchObject({ safeBytes: 700, badBytes: 1000, shortages: 1 });
  const over = { ...CALM, inForceBytes: 700 };
  expect(observeMemory(standing, { ...over, nowMs: 74 * MINUTE }).safeBytes).toBe(700);
  expect(observeMemory(standing, { ...over, nowMs: 75 * MINUTE }).safeBytes).toBe(750);
});

test('follows what an agent grants itself that has not been short of memory, up and down', () => {
  const first = observeMemory(null, { ...CALM, inForceBytes: 300, cutBytes: 300 });
  expect(first).toMatchObject({ safeBytes: 300, badBytes: null, shortages: 0 });
  const grown = observeMemory(first, { ...CALM, inForceBytes: 500, cutBytes: 500, nowMs: 60_000 });
  expect(grown).toMatchObject({ safeBytes: 500, badBytes: null });
  expect(observeMemory(grown, { ...CALM, inForceBytes: 350, cutBytes: 350, newShrinks: 1, nowMs: 90_000 })).toMatchObject({ badBytes: 500, safeBytes: 400, shortages: 1 });
});

test('answers a shortage that comes just after it has grown', () => {
  const grown = run(observeMemory(null, { ...CALM, newShrinks: 1 }), 10, 0);
  expect(grown.safeBytes).toBe(850);
  expect(observeMemory(grown, { ...CALM, inForceBytes: 850, newShrinks: 1, nowMs: 10 * MINUTE + 30_000 })).toMatchObject({ safeBytes: 680, badBytes: 850, shortages: 2 });
});

test('where the device held less than it might, that is what was too much', () => {
  expect(observeMemory(null, { ...CALM, inForceBytes: 600, newShrinks: 1 })).toMatchObject({ badBytes: 600, safeBytes: 480 });
  expect(observeMemory(null, { ...CALM, inForceBytes: 350, cutBytes: 350, newShrinks: 1 })).toMatchObject({ badBytes: 500, safeBytes: 400 });
});

test('grows back by a twentieth per ten calm minutes, stays below the bad level for a day, and forgets it then', () => {
  const short = observeMemory(null, { ...CALM, newShrinks: 1, nowMs: 0 });
  expect(run(short, 9, 0).safeBytes).toBe(800);
  expect(run(short, 10, 0).safeBytes).toBe(850);
  expect(run(short, 10 * 60, 0).safeBytes).toBe(900);
  expect(run(short, 26 * 60, 0)).toMatchObject({ safeBytes: 1000, badBytes: null });
});

test('stays between one token cycle and the device\'s limit, whatever is seen', () => {
  const sight = fc.record({
    limitBytes: fc.integer({ min: 100, max: 5000 }), floorBytes: fc.constant(100), inForceBytes: fc.nat(5000), cutBytes: fc.option(fc.nat(5000)),
    newShrinks: fc.nat(3), minutes: fc.nat(2000),
  });
  fc.assert(fc.property(fc.array(sight, { minLength: 1, maxLength: 30 }), (sights) => {
    let nowMs = 0;
    let state: MemoryState | null = null;
    for (const { minutes, ...seen } of sights) {
      nowMs += minutes * MINUTE;
      state = observeMemory(state, { ...seen, nowMs });
      expect(state.safeBytes).toBeGreaterThanOrEqual(100);
      expect(state.safeBytes).toBeLessThanOrEqual(seen.limitBytes);
    }
  }));
});
