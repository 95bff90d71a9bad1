import { inChunks } from './chunks';

test('gives results in order, with some thousand under way at once and no more', async () => {
  let [running, most] = [0, 0];
  const results = await inChunks(Array.from({ length: 20_000 }, (_, at) => at), async (at) => {
    most = Math.max(most, running += 1);
    await new Promise((resolve) => setTimeout(resolve, at % 7));
    running -= 1;
    return 2 * at;
  });
  expect(results).toEqual(Array.from({ length: 20_000 }, (_, at) => 2 * at));
  expect(most).toBeGreaterThan(5000);
  expect(most).toBeLessThan(11_000);
  expect(await inChunks([], async () => 1)).toEqual([]);
});

test('begins no more once one has failed', async () => {
  let begun = 0;
  await expect(inChunks(Array.from({ length: 100_000 }, (_, at) => at), async (at) => {
    begun += 1;
    if (at === 3) throw new Error('three');
  })).rejects.toThrow('three');
  expect(begun).toBeLessThan(20_000);
});
