import { CALM, pageHinkley } from './page-hinkley';
import { normal, seeded } from './testing/synthetic';

function firstAlarm(residuals: Iterable<number>): { at: number; moved: number } | null {
  let state = CALM;
  let at = 0;
  for (const residual of residuals) {
    at += 1;
    const next = pageHinkley(state, residual);
    if (next.moved !== 0) return { at, moved: next.moved };
    state = next.state;
  }
  return null;
}

function* noise(seed: number, count: number, shift = 0): Generator<number> {
  const random = seeded(seed);
  for (let i = 0; i < count; i += 1) yield normal(random) + shift;
}

test('stays calm for hundreds of windows of noise', () => {
  const alarms = Array.from({ length: 20 }, (_, seed) => firstAlarm(noise(seed, 500))).filter(Boolean);
  expect(alarms.length).toBeLessThanOrEqual(2);
});

test('tells a shift by two deviations, and which way', () => {
  for (let seed = 0; seed < 20; seed += 1) {
    expect(firstAlarm(noise(seed, 20, 2))).toMatchObject({ moved: 1 });
    expect(firstAlarm(noise(seed, 20, -2))).toMatchObject({ moved: -1 });
  }
});

test('takes one outlier for what it is', () => expect(firstAlarm([0, 1e9, 0, -1e9, 0])).toBeNull());
