import { ExpertUse } from '@moefleet/proto';
import {
  addContribution, aged, type Contribution, contributionOf, decodeProfile, emptyProfile, encodeProfile, HALF_LIFE_MS, mergeProfiles, rankExperts, shiftBetween, WHOLE_REPORT_TOKENS,
} from './warm-profile';

const shape = { layers: 2, experts: 4 };
const model = { ...shape, topK: 2 };

function use(wanted: number[][], tokens: number): ExpertUse {
  return ExpertUse.fromPartial({ sequence: 1n, modelHash: 'ab', experts: 4, tokens: BigInt(tokens), layers: wanted.map((counts) => ({ wanted: counts })) });
}

function contribution(wanted: number[][], tokens: number): Contribution {
  const made = contributionOf(use(wanted, tokens), model);
  if ('refused' in made) throw new Error(made.refused);
  return made;
}

test('a report is worth its shares, and weighs one however many tokens it tells of', () => {
  const long = contribution([[1000, 1000, 0, 0], [500, 500, 500, 500]], 1000);
  expect(long.reports).toBe(1);
  expect([...long.counts]).toEqual([0.5, 0.5, 0, 0, 0.25, 0.25, 0.25, 0.25]);
  const short = contribution([[WHOLE_REPORT_TOKENS / 4, WHOLE_REPORT_TOKENS / 4], []], WHOLE_REPORT_TOKENS / 4);
  expect(short.reports).toBe(0.25);
  expect([...short.counts]).toEqual([0.125, 0.125, 0, 0, 0, 0, 0, 0]);
});

test.each([
  ['more uses than its tokens choose', use([[200, 1], [1]], 100), /layer 0: 201 uses of 2 experts by 100 tokens of 2 each/],
  ['an expert used more often than there were tokens', use([[150], [1]], 100), /expert 0 used 150 times by 100 tokens/],
  ['experts the model has not', use([[1, 1, 1, 1, 1], []], 100), /5 experts/],
  ['another number of layers', use([[1]], 100), /it is of 1 layers of 4 experts, the device's model has 2 of 4/],
  ['no tokens', use([[], []], 0), /0 tokens/],
])('refuses %s', (_, report, why) => {
  const made = contributionOf(report, model);
  expect('refused' in made ? made.refused : '').toMatch(why);
});

test('everything halves in a half-life, and a clock that went back ages nothing', () => {
  const profile = emptyProfile(shape, 1000);
  addContribution(profile, contribution([[100, 100], [100, 0, 100]], 256));
  const later = aged(profile, 1000 + HALF_LIFE_MS);
  expect(later.reports).toBeCloseTo(profile.reports / 2, 6);
  expect(later.counts[0]).toBeCloseTo(profile.counts[0]! / 2, 6);
  expect(aged(profile, 0)).toMatchObject({ reports: profile.reports, updatedMs: 1000 });
});

test('ranks by share; a workload of which much is known outranks the fleet', () => {
  const fleet = emptyProfile(shape, 0);
  const own = emptyProfile(shape, 0);
  for (let i = 0; i < 10; i += 1) addContribution(fleet, contribution([[256, 200, 56], [256, 256]], 256));
  expect(rankExperts(null, fleet)).toEqual([[0, 1, 2], [0, 1]]);
  addContribution(own, contribution([[0, 0, 0, 30], [0, 0, 0, 30]], 30));
  expect(rankExperts(own, fleet)[0]![0]).toBe(0);
  for (let i = 0; i < 20; i += 1) addContribution(own, contribution([[0, 0, 0, 256], [0, 0, 0, 256]], 256));
  expect(rankExperts(own, mergeProfiles(shape, [fleet, own], 0))[0]![0]).toBe(3);
});

test('one device that lies moves a list by no more than a device may', () => {
  const profile = emptyProfile(shape, 0);
  for (let i = 0; i < 9; i += 1) addContribution(profile, contribution([[256, 200, 56], [256, 256]], 256));
  addContribution(profile, contribution([[0, 0, 0, 1_000_000], [0, 0, 0, 1_000_000]], 1_000_000));
  expect(rankExperts(null, profile)[0]!.slice(0, 2)).toEqual([0, 1]);
  expect(profile.counts[3]! / profile.reports).toBeLessThanOrEqual(0.1);
});

test('a profile survives its encoding; what is none of this shape, or makes no sense, is none', () => {
  const profile = emptyProfile(shape, 12345);
  addContribution(profile, contribution([[256, 200, 56], [256, 256]], 256));
  const bytes = encodeProfile(profile);
  expect(bytes.length).toBe(24 + 4 * 8);
  expect(decodeProfile(bytes, shape)).toEqual(profile);
  expect(decodeProfile(bytes, { layers: 4, experts: 2 })).toBeNull();
  expect(decodeProfile(bytes.subarray(1), shape)).toBeNull();
  for (const [value, at] of [[Number.NaN, 24], [-1, 24], [99, 28], [Number.NaN, 12], [-1, 12]] as const) {
    const damaged = Buffer.from(bytes);
    damaged.writeFloatLE(value, at);
    expect(decodeProfile(damaged, shape)).toBeNull();
  }
});

test('a shift is the share of the better half that has changed', () => {
  expect(shiftBetween([[0, 1, 2, 3]], [[1, 0, 3, 2]])).toBe(0);
  expect(shiftBetween([[0, 1, 2, 3]], [[0, 2, 1, 3]])).toBe(0.5);
  expect(shiftBetween([], [[0]])).toBe(0);
});
