import { Routing } from './gen/moefleet/v1/device';
import { routingText } from './routing-methods';

test.each([
  ['λ 0.2 topJ 1', { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2, topJ: 1 }],
  ['λ 0.2 topJ 1', { routing: Routing.ROUTING_UNSPECIFIED, lambda: 0.2, topJ: 1 }],
  ['λ 0.2', { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0.2 }],
  ['λ 0', { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, topJ: 2 }],
  ['λ 0,0.3 topJ 1,0', { routing: Routing.ROUTING_CACHE_PRIOR, lambda: 0, lambdas: [0, 0.3], topJs: [1, 0] }],
  ['original', { routing: Routing.ROUTING_ORIGINAL, lambda: 0, topJ: 2 }],
  ['max_rank 8 topJ 2', { routing: Routing.ROUTING_MAX_RANK, lambda: 0, topJ: 2, maxRank: 8, massThreshold: 0 }],
  ['cumulative_threshold 0.7 topJ 0', { routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, topJ: 0, massThreshold: 0.7 }],
  ['pruned topJ 2', { routing: Routing.ROUTING_PRUNED, topJ: 2, maxRank: 0 }],
  ['routing 99 topJ 2', { routing: 99 as Routing, topJ: 2 }],
])('says %s', (text, chosen) => expect(routingText(chosen)).toBe(text));
