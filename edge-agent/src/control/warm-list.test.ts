import { WarmList } from '@moefleet/proto';
import { testModel } from './testing/test-model';
import { checkListSize, rankedFor } from './warm-list';

const model = testModel();
const list = (layers: number[][], modelHash = model.hash) => WarmList.fromPartial({ modelHash, layers: layers.map((experts) => ({ experts })) });

test('a list for the loaded model ranks each layer', () => {
  expect(rankedFor(list([[7, 0], [], [1], [2, 3, 4]]), model)).toEqual([[7, 0], [], [1], [2, 3, 4]].map((layer) => Int32Array.from(layer)));
});

test('a list for another model is none', () => {
  expect(rankedFor(list([[7]], 'cd'.repeat(32)), model)).toBeNull();
});

test.each([
  ['too few layers', [[0]], /expected one entry per MoE layer of the model \(4\), found 1/],
  ['an expert that does not exist', [[0], [0], [8], [0]], /blk\.2: expected experts from 0 to 7, found 8/],
  ['an expert twice', [[0], [3, 1, 3], [], []], /blk\.1: expert 3 is there twice/],
  ['more experts than there are', [[0, 1, 2, 3, 4, 5, 6, 7, 0], [], [], []], /blk\.0: at most 8 experts, found 9/],
])('refuses %s', (_, layers, why) => {
  expect(() => rankedFor(list(layers), model)).toThrow(why);
});

test('refuses to keep what is too long for any model', () => {
  expect(() => checkListSize(list(Array.from({ length: 5000 }, () => [])))).toThrow(/5000 layers/);
  expect(() => checkListSize(list([Array<number>(70_000).fill(1)]))).toThrow(/70000 experts/);
  expect(() => checkListSize(list([], 'a'.repeat(200)))).toThrow(/200 characters/);
});
