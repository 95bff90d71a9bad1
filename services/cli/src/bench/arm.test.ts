import { UsageFailure } from '../failure';
import { type Arm, parseArm } from './arm';

const DEFAULTS = { model: 'm.gguf', threads: 2, lanes: 4, capacity: 13, lambda: '0.3', topJ: '1' };
const parse = (text: string): Arm => parseArm(text, DEFAULTS);

test('a named arm is short for flags, with the strength that was given', () => {
  expect(parse('lru')).toMatchObject({ t: 'engine', name: 'lru', settings: { modelPath: 'm.gguf', threads: 2, lanes: 4, cache: { t: 'capacity', capacity: 13 }, routing: { routing: 'cache_prior', lambda: 0, eviction: 'lru' } } });
  expect(parse('lambda')).toMatchObject({ settings: { routing: { lambda: 0.3, topJ: 1, eviction: 'lru' } } });
  expect(parse('ours-lossless')).toMatchObject({ settings: { routing: { lambda: 0, eviction: 'adaptive' } } });
  expect(parse('ours')).toMatchObject({ settings: { routing: { lambda: 0.3, topJ: 1, eviction: 'adaptive' } } });
  expect(parse('stock')).toEqual({ t: 'stock', name: 'stock', text: 'extraBufts=true', extraBufts: true });
  expect(parse('stock-plain:extraBufts=false')).toMatchObject({ t: 'stock', name: 'stock-plain', extraBufts: false });
});

test('an arm takes the flags of eval, in either spelling, lists included', () => {
  expect(parse('a:lambda=0.1,0.2,top-j=0,eviction=lfu,halfLife=8,lanes=2,biasPrefill=true,directIo=false,capacity=8')).toMatchObject({
    name: 'a',
    settings: { lanes: 2, directIo: false, cache: { t: 'capacity', capacity: 8 }, routing: { lambda: [0.1, 0.2], topJ: 0, eviction: 'lfu', evictionHalfLifeTokens: 8, biasPrefill: true } },
  });
  expect(parse('b:cacheMib=64')).toMatchObject({ settings: { cache: { t: 'bytes', bytes: 64 * 2 ** 20 } } });
  expect(parse('c:')).toMatchObject({ name: 'c', settings: { routing: { lambda: 0 } } });
});

test.each([
  ['nobody', /no arm named nobody; use stock, lru/],
  ['a b:lambda=0', /no name of letters/],
  ['a:lambda', /"lambda" is no flag=value/],
  ['a:lambda=2', /lambda.*from 0 to 1/],
  ['a:frob=1', /unknown option '--frob=1'/],
  ['a:eviction=best', /eviction.*best/],
  ['stock:lambda=1', /takes extraBufts=true or extraBufts=false alone/],
])('refuses %j', (text, why) => {
  expect(() => parse(text)).toThrow(UsageFailure);
  expect(() => parse(text)).toThrow(why);
});
