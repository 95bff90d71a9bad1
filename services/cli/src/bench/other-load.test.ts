import { busySeconds, othersProcessors } from './other-load';

test('counts everything but idling and waiting for disks, guests only once', () => {
  expect(busySeconds('cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n')).toBeCloseTo(1.71);
});

test('what is not our own is the others\'', () => {
  expect(othersProcessors(10, 4, 3)).toBe(2);
  expect(othersProcessors(10, 11, 3)).toBe(0);
});
