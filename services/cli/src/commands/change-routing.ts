/** `moefleet routing` and `moefleet eviction`: which experts devices choose, and who leaves their caches. */
import { Argument, type Command, Option } from 'commander';
import { Eviction, ROUTING_METHODS, type RoutingMethod, ROUTINGS, SetRouting } from '@moefleet/proto';
import { integerFrom, listOf, numberFrom } from '../argument';
import type { Context } from '../context';
import { addOperatorGroup } from '../operator-command';
import { changing } from './change';

const POLICIES = {
  lru: Eviction.EVICTION_LRU, lfu: Eviction.EVICTION_LFU, lfru: Eviction.EVICTION_LFRU, adaptive: Eviction.EVICTION_ADAPTIVE,
} as const;

/** A flag's value, or the list that stands in for it. */
type PerLayer = number | number[] | undefined;

export function addRouting(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'routing', 'how devices choose experts: λ, and the other ways to prefer cached ones', (routing, action) => {
    changing(context, action, routing.command('set')
      .description('pin the method and all that belongs to it; it replaces a pinned λ, as `moefleet lambda set` replaces it')
      .addArgument(new Argument('<method>', 'how experts are chosen').choices(ROUTING_METHODS))
      .addOption(new Option('--lambda <x>', 'cache_prior: strength in [0,1]; a,b,... gives one per layer with experts').argParser(listOf(numberFrom(0, 1))))
      .addOption(new Option('--top-j <n>', 'how many of a token\'s best experts are never displaced; a,b,... gives one per layer').argParser(listOf(integerFrom(0, 4096))))
      .addOption(new Option('--max-rank <m>', 'max_rank: prefer cached experts up to this rank (default: any)').argParser(integerFrom(1, 65_535)))
      .addOption(new Option('--mass-threshold <p>', 'cumulative_threshold: prefer cached experts up to the rank that holds this softmax mass (default: 0.9)').argParser(numberFrom(0, 1)))
      .addOption(new Option('--first-biased-layer <n>', 'leave this many layers with experts, from the first, to the model').argParser(integerFrom(0, 4096)))
      .option('--bias-prefill', 'route prompts as decoding is, instead of by the model\'s own choice'),
    `
Methods; the best --top-j experts of a token are always used, where one displaces any:
  original              the model's own choice
  cache_prior           a pull of strength λ towards cached experts; the same as \`moefleet lambda set\`
  max_rank              cached experts of rank up to --max-rank first, then the others by rank
  cumulative_threshold  the same, up to the rank at which a token's softmax mass reaches --mass-threshold
  pruned                the model's own, without those that miss beyond --top-j: fewer experts per token
Only cache_prior has a strength that a device's own --max-lambda can lower; a device that allows less than λ 1 answers
the last three with the model's own choice, and says so.

Examples:
  moefleet routing set max_rank --max-rank 8 --top-j 2 --all
  moefleet routing set cache_prior --lambda 0.3 --bias-prefill --first-biased-layer 1 --device phone-1
  moefleet routing set original --selector class=jetson
`, ({ args, options }) => {
      const [lambda, topJ] = [options['lambda'] as PerLayer, options['topJ'] as PerLayer];
      return { $case: 'setRouting', value: SetRouting.fromPartial({
        routing: ROUTINGS[args[0] as RoutingMethod],
        lambda: Array.isArray(lambda) ? undefined : lambda, lambdas: Array.isArray(lambda) ? lambda : [],
        topJ: Array.isArray(topJ) ? undefined : topJ, topJs: Array.isArray(topJ) ? topJ : [],
        maxRank: options['maxRank'] as number | undefined, massThreshold: options['massThreshold'] as number | undefined,
        firstBiasedLayer: options['firstBiasedLayer'] as number | undefined, biasPrefill: options['biasPrefill'] as boolean | undefined,
      }) };
    });
    changing(context, action, routing.command('auto').description('hand routing, λ included, back to the learner'),
      '\nExample:\n  moefleet routing auto --all\n', () => ({ $case: 'clearLambda', value: {} }));
  });
}

export function addEviction(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'eviction', 'who leaves a device\'s full cache', (eviction, action) => {
    changing(context, action, eviction.command('set')
      .description('pin the policy; at λ 0 it changes what is read, never what the model says')
      .addArgument(new Argument('<policy>', 'who leaves a full cache').choices(Object.keys(POLICIES)))
      .addOption(new Option('--half-life <tokens>', 'lfu, lfru: a use counts half after this many tokens; 0: uses do not age').argParser(numberFrom(0, 1e12))),
    `
Policies:
  lru       the least recently used
  lfu       the least used, counted since the start, in the cache or out of it
  lfru      the fewest uses per token since the last use
  adaptive  each layer finds out by itself what suits it

Examples:
  moefleet eviction set lfu --half-life 64 --all
  moefleet eviction set lru --device phone-1
`, ({ args, options }) => ({ $case: 'setEviction', value: { eviction: POLICIES[args[0] as keyof typeof POLICIES], halfLifeTokens: options['halfLife'] as number | undefined } }));
    changing(context, action, eviction.command('auto').description('leave the policy to the devices again'),
      '\nExample:\n  moefleet eviction auto --all\n', () => ({ $case: 'clearEviction', value: {} }));
  });
}
