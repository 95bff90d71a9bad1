import { AS_THE_TEXT, ownMisses, ownMissRate } from './own-misses';

/** Share of slots missed on the texts and by four short answers, as measured: at λ 0, and at λ 0.1 to 0.15. */
const MEASURED = [
  { capacity: 8, text: [0.423, 0.26], answers: [0.514, 0.348] },
  { capacity: 10, text: [0.345, 0.207], answers: [0.448, 0.301] },
  { capacity: 14, text: [0.232, 0.1], answers: [0.327, 0.167] },
  { capacity: 22, text: [0.086, 0.02], answers: [0.147, 0.055] },
] as const;

test.each(MEASURED)('what answers miss at one setting foretells what they miss at another: $capacity of 32 experts', ({ text, answers }) => {
  const own = ownMisses(answers[0], text[0], Math.sqrt(text[0]));
  expect(ownMissRate(text[0], own)).toBeCloseTo(answers[0], 10);
  expect(Math.abs(ownMissRate(text[1], own) / answers[1] - 1)).toBeLessThan(0.1);
});

test('a device that misses less than the text does so at every setting', () => {
  const own = ownMisses(0.1, 0.2, Math.sqrt(0.2));
  expect(own).toEqual({ strangeShare: 0, factor: 0.5 });
  expect(ownMissRate(0.04, own)).toBeCloseTo(0.02, 10);
});

test('counts what was seen as far as it is told to, never says more than all, and nothing of a text that misses nothing', () => {
  expect(ownMisses(0.3, 0.2, Math.sqrt(0.2), 0)).toEqual(AS_THE_TEXT);
  expect(ownMisses(0.3, 0.2, Math.sqrt(0.2), 0.5).strangeShare).toBeCloseTo(ownMisses(0.3, 0.2, Math.sqrt(0.2)).strangeShare / 2, 10);
  expect(ownMissRate(0.2, ownMisses(1, 0.2, Math.sqrt(0.2)))).toBeLessThan(1);
  expect(ownMisses(0.01, 0.2, Math.sqrt(0.2)).factor).toBe(0.25);
  for (const [seen, said] of [[0.1, 0], [0, 0], [1, 1]] as const) expect(ownMisses(seen, said, Math.sqrt(said))).toEqual(AS_THE_TEXT);
});
