import * as incubating from '@opentelemetry/semantic-conventions/incubating';
import { GEN_AI, RESOURCE } from './attribute-names';
import { missSpanId, requestSpanId, traceIdOf } from './span-ids';
import { isSampled, parseTraceparent } from './trace-sampling';

test('a miss keeps its span id for ever', () => {
  // SHA-256 of "boot-1\n2\n3", worked out by sha256sum.
  expect(missSpanId('boot-1', 2, 3)).toBe('0333ec18d8a8f0a6');
});

test('no two misses, places or parts share an id', () => {
  const ids = new Set<string>();
  for (let number = 1; number <= 5000; number += 1) ids.add(missSpanId('boot', 1, number)).add(missSpanId('boot', 2, number)).add(missSpanId('boot2', 1, number));
  expect(ids.size).toBe(15000);
  expect(requestSpanId('req-1', 'step 1 0')).not.toBe(requestSpanId('req-1', 'step 10 0'));
  expect(traceIdOf('req-1', 0)).toMatch(/^[0-9a-f]{32}$/);
  expect(traceIdOf('req-1', 1)).not.toBe(traceIdOf('req-1', 0));
});

test('the copied attribute names are those of the conventions', () => {
  const known = new Set(Object.values(incubating));
  for (const name of Object.values(GEN_AI)) expect(known).toContain(name);
  for (const name of Object.values(RESOURCE).filter((name) => !name.startsWith('moefleet.'))) expect(known).toContain(name);
});

test.each<[string | null, ReturnType<typeof parseTraceparent>]>([
  ['00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331', sampled: true }],
  ['00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02', { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331', sampled: false }],
  ['cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later', { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331', sampled: true }],
  ['00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later', null],
  ['ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', null],
  ['00-00000000000000000000000000000000-b7ad6b7169203331-01', null],
  ['00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01', null],
  ['00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01', null],
  ['nonsense', null], ['', null], [null, null],
])('reads the traceparent %s', (header, parent) => {
  expect(parseTraceparent(header)).toEqual(parent);
});

test('samples the share it is asked for, the same ids every time, and fewer are a part of more', () => {
  const ids = Array.from({ length: 4000 }, (_, index) => traceIdOf(`req-${index}`, 0));
  const share = (ratio: number) => ids.filter((id) => isSampled(id, ratio, null));
  expect([share(0).length, share(1).length]).toEqual([0, 4000]);
  expect(Math.abs(share(0.25).length - 1000)).toBeLessThan(150);
  const half = new Set(share(0.5));
  expect(share(0.25).filter((id) => !half.has(id))).toEqual([]);
  expect(isSampled('f'.repeat(32), 1, null)).toBe(true);
});

test('a caller that sent a traceparent has decided', () => {
  const parent = { traceId: 'f'.repeat(32), spanId: '1'.repeat(16) };
  expect([isSampled(parent.traceId, 0, { ...parent, sampled: true }), isSampled(parent.traceId, 1, { ...parent, sampled: false })]).toEqual([true, false]);
});
