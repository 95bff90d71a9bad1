/** Pure figures over lists of numbers. Intervals are 95%, by the normal approximation. */

export const Z95 = 1.96;

export const sum = (list) => list.reduce((total, each) => total + each, 0);
export const mean = (list) => sum(list) / list.length;

/** Standard error of the mean; null for fewer than two. */
export function standardError(list) {
  if (list.length < 2) return null;
  const centre = mean(list);
  return Math.sqrt(sum(list.map((each) => (each - centre) ** 2)) / (list.length - 1) / list.length);
}

/**
 * What `bent` loses to `own`, both nats per window over the same windows of `scored` tokens: the mean loss in nats per
 * token, its standard error (each window compared with itself), and both as a change of perplexity.
 */
export function pairedLoss(bent, own, scored) {
  if (bent.length !== own.length) throw new Error(`windows differ: ${bent.length} and ${own.length}`);
  const losses = bent.map((nll, index) => (nll - own[index]) / scored);
  const nats = mean(losses);
  const stderr = standardError(losses);
  return { nats, stderr, percent: Math.expm1(nats) * 100, percentError: stderr === null ? null : Math.exp(nats) * stderr * 100 };
}

/** 0 where all are used alike, towards 1 where one takes all. */
export function gini(counts) {
  const sorted = [...counts].sort((a, b) => a - b);
  const total = sum(sorted);
  if (total === 0) return 0;
  const weighted = sum(sorted.map((count, index) => (index + 1) * count));
  return (2 * weighted) / (sorted.length * total) - (sorted.length + 1) / sorted.length;
}

/** Entropy over its largest possible value, in [0, 1]. */
export function evenness(counts) {
  const total = sum(counts);
  if (total === 0 || counts.length < 2) return 1;
  const entropy = -sum(counts.filter((count) => count > 0).map((count) => (count / total) * Math.log(count / total)));
  return entropy / Math.log(counts.length);
}

/** Share of all uses that go to the `n` most used. */
export function topShare(counts, n) {
  const total = sum(counts);
  return total === 0 ? 0 : sum([...counts].sort((a, b) => b - a).slice(0, n)) / total;
}

/** The points no other beats on both: fewer misses and a smaller loss. Ordered by the first. */
export function paretoFront(points, x, y) {
  const sorted = [...points].sort((a, b) => x(a) - x(b) || y(a) - y(b));
  const front = [];
  for (const point of sorted) {
    if (front.length === 0 || y(point) < y(front.at(-1))) front.push(point);
  }
  return front;
}
