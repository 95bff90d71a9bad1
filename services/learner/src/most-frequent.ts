/** The distinct ones of `items`, those that occur most often first. */
export function mostFrequentFirst<T>(items: readonly T[], same: (a: T, b: T) => boolean): T[] {
  const counted: { item: T; times: number }[] = [];
  for (const item of items) {
    const known = counted.find((one) => same(one.item, item));
    if (known) known.times += 1;
    else counted.push({ item, times: 1 });
  }
  return counted.sort((a, b) => b.times - a.times).map((one) => one.item);
}
