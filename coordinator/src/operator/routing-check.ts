/**
 * An operator's choice of routing. What a method does not read is refused rather than ignored: whoever gives a lambda
 * to `max_rank` expects it to do something.
 */
import { type RoutingMethod, routingMethod, type SetRouting } from '@moefleet/proto';
import { InvalidRequestError } from '../errors';
import type { RoutingChoice } from '../registry/pin';
import { MOST_EXPERTS, share, within } from './value-check';

const BENDING: readonly RoutingMethod[] = ['cache_prior', 'max_rank', 'cumulative_threshold', 'pruned'];
const READ_BY: { readonly [F in Exclude<keyof SetRouting, 'routing'>]: readonly RoutingMethod[] } = {
  lambda: ['cache_prior'], lambdas: ['cache_prior'], maxRank: ['max_rank'], massThreshold: ['cumulative_threshold'],
  topJ: BENDING, topJs: BENDING, firstBiasedLayer: BENDING, biasPrefill: BENDING,
};
/** No model has that many layers with experts. */
const MOST_LAYERS = 4096;

export function checkRouting(asked: SetRouting): RoutingChoice {
  const method = routingMethod(asked.routing);
  if (!method) throw new InvalidRequestError('set_routing.routing', asked.routing, 'a routing of this coordinator: ORIGINAL, CACHE_PRIOR, MAX_RANK, CUMULATIVE_THRESHOLD or PRUNED');
  for (const [field, methods] of Object.entries(READ_BY) as [keyof typeof READ_BY, readonly RoutingMethod[]][]) {
    if (isGiven(asked[field]) && !methods.includes(method)) throw new InvalidRequestError(nameOf(field), asked[field], `read by ${method}; leave it out`);
  }
  for (const [one, list] of [['lambda', 'lambdas'], ['topJ', 'topJs']] as const) {
    if (isGiven(asked[one]) && isGiven(asked[list])) throw new InvalidRequestError(nameOf(one), asked[one], `possible beside ${nameOf(list)}; give one of the two`);
    if (asked[list].length > MOST_LAYERS) throw new InvalidRequestError(nameOf(list), `${asked[list].length} values`, 'one per layer with experts');
  }
  if (method === 'cache_prior' && asked.lambda === undefined && asked.lambdas.length === 0) throw new InvalidRequestError('set_routing.lambda', 'nothing', 'a number from 0 to 1, the strength of cache_prior');
  return { ...(method === 'cache_prior' ? {} : { method }), ...values(asked, method === 'pruned' ? 1 : 0) };
}

/** `leastTopJ`: a method that drops experts must keep one. */
function values(asked: SetRouting, leastTopJ: number): RoutingChoice {
  const topJ = (field: 'topJ' | 'topJs', value: number) => within(nameOf(field), value, leastTopJ, MOST_EXPERTS);
  return {
    // Beside a list: what an agent runs that knows no lists.
    lambda: share(nameOf('lambda'), asked.lambda ?? (asked.lambdas.length > 0 ? Math.min(...asked.lambdas) : 0)),
    topJ: asked.topJ === undefined ? null : topJ('topJ', asked.topJ),
    ...(asked.lambdas.length > 0 ? { lambdas: asked.lambdas.map((each) => share(nameOf('lambdas'), each)) } : {}),
    ...(asked.topJs.length > 0 ? { topJs: asked.topJs.map((each) => topJ('topJs', each)) } : {}),
    ...(asked.maxRank === undefined ? {} : { maxRank: within(nameOf('maxRank'), asked.maxRank, 1, MOST_EXPERTS) }),
    ...(asked.massThreshold === undefined ? {} : { massThreshold: share(nameOf('massThreshold'), asked.massThreshold) }),
    ...(asked.firstBiasedLayer === undefined ? {} : { firstBiasedLayer: within(nameOf('firstBiasedLayer'), asked.firstBiasedLayer, 0, MOST_LAYERS) }),
    ...(asked.biasPrefill === undefined ? {} : { biasPrefill: asked.biasPrefill }),
  };
}

function isGiven(value: SetRouting[keyof SetRouting]): boolean {
  return Array.isArray(value) ? value.length > 0 : value !== undefined && value !== false;
}

/** As the proto file spells it. */
function nameOf(field: keyof SetRouting): string {
  return `set_routing.${field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`;
}
