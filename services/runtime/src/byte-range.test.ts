import { askedRange } from './byte-range';

test.each<[string | undefined, ReturnType<typeof askedRange>]>([
  [undefined, { t: 'all' }],
  ['bytes=0-9', { t: 'part', range: { start: 0, end: 9 } }],
  ['bytes=90-', { t: 'part', range: { start: 90, end: 99 } }],
  ['bytes=90-1000', { t: 'part', range: { start: 90, end: 99 } }],
  ['bytes=-10', { t: 'part', range: { start: 90, end: 99 } }],
  ['bytes=-1000', { t: 'part', range: { start: 0, end: 99 } }],
  ['bytes=100-', { t: 'none of it' }],
  ['bytes=-0', { t: 'none of it' }],
  ['bytes=9-3', { t: 'all' }],
  ['bytes=0-1,5-6', { t: 'all' }],
  ['bytes=-', { t: 'all' }],
  ['bytes=99999999999999999999-', { t: 'all' }],
  ['lines=1-2', { t: 'all' }],
])('%s of 100 bytes', (header, asked) => expect(askedRange(header, 100)).toEqual(asked));
