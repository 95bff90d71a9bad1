/** Enough in flight to fill the pipe, few enough to leave Redis to others. */
const CHUNK = 256;

/** `work` on every item, in order of the items, `CHUNK` at a time. */
export async function inChunks<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += CHUNK) {
    results.push(...await Promise.all(items.slice(at, at + CHUNK).map(work)));
  }
  return results;
}
