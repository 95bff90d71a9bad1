/** The ways to spend quality on hits that both papers and this engine know, as specs over a grid of their parameters. */

const HALF_LIFE_TOKENS = 128;

export const LFU_AGED = { eviction: 'lfu', evictionHalfLifeTokens: HALF_LIFE_TOKENS };
export const EVICTIONS = [
  { name: 'lru', fields: { eviction: 'lru' } },
  { name: 'lfu', fields: { eviction: 'lfu' } },
  { name: `lfu, half-life ${HALF_LIFE_TOKENS}`, fields: LFU_AGED },
  { name: 'lfru', fields: { eviction: 'lfru' } },
  { name: 'adaptive', fields: { eviction: 'adaptive' } },
];

const prior = (lambda, topJ, more = {}) => ({ strategy: 'cache_prior', setting: `λ ${lambda}, topJ ${topJ}`, fields: { routing: 'cache_prior', lambda, topJ, ...more } });

/** Everything, for one text. */
export function allStrategies({ info: { topK, experts, moeLayers }, topJs }) {
  const two = [1, 2].filter((topJ) => topJ <= topK);
  const ranks = [...new Set([topK + 2, 2 * topK, 3 * topK, Math.round(experts / 2), experts])].filter((rank) => rank <= experts);
  return [
    ...[0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1].flatMap((lambda) => topJs.map((topJ) => prior(lambda, topJ))),
    ...ranks.flatMap((maxRank) => two.map((topJ) => ({ strategy: 'max_rank', setting: `M ${maxRank}, topJ ${topJ}`, fields: { routing: 'max_rank', maxRank, topJ } }))),
    ...[0.5, 0.6, 0.7, 0.8, 0.9].flatMap((massThreshold) => two.map((topJ) => ({ strategy: 'cumulative_threshold', setting: `p ${massThreshold}, topJ ${topJ}`, fields: { routing: 'cumulative_threshold', massThreshold, topJ } }))),
    ...topJs.filter((topJ) => topJ > 0).map((topJ) => ({ strategy: 'pruned', setting: `topJ ${topJ}`, fields: { routing: 'pruned', topJ } })),
    ...[0.1, 0.15, 0.2, 0.3].flatMap((lambda) => two.map((topJ) => ({ ...prior(lambda, topJ, LFU_AGED), strategy: 'cache_prior, aged LFU' }))),
    ...perLayer(moeLayers.length, topK),
  ];
}

/**
 * λ and topJ by layer, with aged LFU: the first layer, whose experts are the costliest to displace, is bent little or
 * not at all, the others more than all could be.
 */
function perLayer(layers, topK) {
  const rest = (first, others) => [first, ...Array(layers - 1).fill(others)];
  return [[0, 0.2, 1], [0, 0.3, 1], [0.1, 0.3, 1], [0.1, 0.4, 1], [0.1, 0.2, 0], [0.1, 0.3, 0]].filter(([, , topJ]) => topJ <= topK).map(([first, others, topJ]) => ({
    strategy: 'per layer, aged LFU', setting: `λ ${first}, then ${others}; topJ 1, then ${topJ}`,
    fields: { routing: 'cache_prior', lambdas: rest(first, others), topJs: rest(1, topJ), ...LFU_AGED },
  }));
}

/** A few of each, for the other texts. */
export function fewStrategies(bench) {
  const wanted = ['λ 0.1, topJ 1', 'λ 0.2, topJ 1', 'λ 0.3, topJ 1', 'λ 0.1, topJ 2', 'λ 0.3, topJ 2', 'λ 1, topJ 2'];
  const rank = bench.info.topK * 2;
  return allStrategies(bench).filter(({ strategy, setting }) => {
    switch (strategy) {
      case 'cache_prior': return wanted.includes(setting);
      case 'max_rank': return setting.startsWith(`M ${rank},`);
      case 'cumulative_threshold': return setting.startsWith('p 0.7');
      case 'pruned': return setting === 'topJ 1' || setting === 'topJ 2';
      case 'cache_prior, aged LFU': return ['λ 0.2, topJ 1', 'λ 0.3, topJ 2'].includes(setting);
      default: return setting.startsWith('λ 0.1, then 0.3');
    }
  });
}
