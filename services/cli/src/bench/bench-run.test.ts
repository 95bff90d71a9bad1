import { rotation } from './bench-run';

test('every arm is once in every place when there are as many runs as arms', () => {
  expect([0, 1, 2].map((run) => rotation(3, run))).toEqual([[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
  expect(rotation(2, 5)).toEqual([1, 0]);
});
