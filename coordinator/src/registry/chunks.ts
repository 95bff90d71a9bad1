/**
 * What is begun together, and how many such are under way. Ten thousand at once, so that what devices are to run leaves for all of
 * them before the first have answered; Redis takes a few milliseconds for each hundred, between which it serves others.
 */
const CHUNK = 256;
const LANES = 40;

/** `work` on every item, some hundred at a time; results in order of the items. Begins no more once one has failed. */
export async function inChunks<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = new Array<R>(items.length);
  let next = 0;
  const lane = async () => {
    while (next < items.length) {
      const from = next;
      next += CHUNK;
      try {
        for (const [at, result] of (await Promise.all(items.slice(from, from + CHUNK).map(work))).entries()) results[from + at] = result;
      } catch (error) {
        next = items.length;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  return results;
}

/** Of what is streamed device by device: some hundred KiB a message. */
export const DEVICES_PER_MESSAGE = 100;

/** The items in order, `size` at a time. */
export function* pages<T>(items: readonly T[], size: number): Generator<T[]> {
  for (let at = 0; at < items.length; at += size) yield items.slice(at, at + size);
}
