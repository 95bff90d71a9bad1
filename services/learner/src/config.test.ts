import { Routing } from '@moefleet/proto';
import { ConfigError } from '@moefleet/runtime';
import { readConfig } from './config';

const LEAST = { MOEFLEET_LEARNER_MODEL: 'm.gguf', MOEFLEET_LEARNER_TEXT: 't.txt' };

test('needs no more than a model and a text', () => {
  expect(readConfig(LEAST)).toMatchObject({ tokens: 4096, threads: 1, redisPrefix: 'moefleet', operatorAddress: '127.0.0.1:7401' });
  expect(readConfig(LEAST).budget.meanNats).toBeCloseTo(Math.log(1.01), 12);
  expect(readConfig(LEAST).budget.worstNats).toBeCloseTo(Math.log(1.02), 12);
  expect(readConfig(LEAST).routings).toEqual([Routing.ROUTING_CACHE_PRIOR]);
  expect(Object.isFrozen(readConfig(LEAST))).toBe(true);
});

test('leaves the number of compute threads to the engine where it is 0', () => {
  expect(readConfig({ ...LEAST, MOEFLEET_LEARNER_THREADS: '0' }).threads).toBe(0);
});

test('reads several models, and texts', () => {
  expect(readConfig({ MOEFLEET_LEARNER_MODEL: 'a.gguf, b/a.gguf', MOEFLEET_LEARNER_TEXT: 't.txt,u.txt' })).toMatchObject({ modelPaths: ['a.gguf', 'b/a.gguf'], textPaths: ['t.txt', 'u.txt'] });
});

test('the routings are measured in an order of their own', () => {
  expect(readConfig({ ...LEAST, MOEFLEET_LEARNER_ROUTINGS: 'pruned, max_rank,cache_prior' }).routings).toEqual([Routing.ROUTING_CACHE_PRIOR, Routing.ROUTING_MAX_RANK, Routing.ROUTING_PRUNED]);
});

test.each(['2%', '2', ' 2.0 % '])('reads a budget of "%s" as two percent of perplexity', (budget) => {
  expect(readConfig({ ...LEAST, MOEFLEET_LEARNER_BUDGET: budget }).budget.meanNats).toBeCloseTo(Math.log(1.02), 12);
});

test.each([
  [{ MOEFLEET_LEARNER_MODEL: '' }, /--model/], [{ MOEFLEET_LEARNER_MODEL: 'a.gguf,b.gguf,a.gguf' }, /--model: .*"a.gguf" is there twice/], [{ MOEFLEET_LEARNER_MODEL: ', ' }, /--model/], [{ MOEFLEET_LEARNER_TEXT: undefined }, /--text/],
  [{ MOEFLEET_LEARNER_TOKENS: '1000' }, /--tokens: "1000" is not a multiple of 256/], [{ MOEFLEET_LEARNER_TOKENS: '256' }, /--tokens/],
  [{ MOEFLEET_LEARNER_BUDGET: '0%' }, /--budget: "0%"/], [{ MOEFLEET_LEARNER_BUDGET: '-1' }, /--budget/], [{ MOEFLEET_LEARNER_BUDGET: '101%' }, /--budget/],
  [{ MOEFLEET_LEARNER_WORST_BUDGET: 'much' }, /--worst-budget: "much"/], [{ MOEFLEET_LEARNER_TEXT: 'a/t.txt,b/t.txt' }, /--text: .*"t" is there twice/],
  [{ MOEFLEET_LEARNER_BUDGET_FOR: 'class=phone' }, /--budget-for: "class=phone"/], [{ MOEFLEET_LEARNER_BUDGET_FOR: 'class in: 1%' }, /--budget-for/],
  [{ MOEFLEET_OPERATOR: 'nowhere' }, /--operator: "nowhere"/], [{ MOEFLEET_REDIS_URL: 'http://x' }, /MOEFLEET_REDIS_URL: "http:\/\/x"/],
  [{ MOEFLEET_LEARNER_HTTP_LISTEN: 'here' }, /--http: "here"/], [{ MOEFLEET_REDIS_PREFIX: '{a}' }, /MOEFLEET_REDIS_PREFIX/],
  [{ MOEFLEET_LEARNER_ROUTINGS: 'cache_prior,original' }, /--routings: "cache_prior,original"/], [{ MOEFLEET_LEARNER_ROUTINGS: ',' }, /--routings/],
  [{ MOEFLEET_LOG_LEVEL: 'loud' }, /--log-level/], [{ MOEFLEET_LEARNER_THREADS: '-1' }, /--threads/],
])('refuses %j and names it', (values, text) => {
  expect(() => readConfig({ ...LEAST, ...values })).toThrow(ConfigError);
  expect(() => readConfig({ ...LEAST, ...values })).toThrow(text);
});
