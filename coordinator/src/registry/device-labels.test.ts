import { decodeLabels, mergeLabels } from './device-labels';

test('an operator\'s label wins over a reported one; what is reserved cannot be claimed by a device', () => {
  expect(mergeLabels({ site: 'lab', class: 'phone', 'moefleet.io/tier': 'prod' }, { site: 'roof' })).toEqual({ site: 'roof', class: 'phone' });
  expect(mergeLabels({ 'moefleet.io/tier': 'prod' }, { 'moefleet.io/tier': 'dev' })).toEqual({ 'moefleet.io/tier': 'dev' });
});

test('what is no label in Redis is left out and named', () => {
  const damaged: string[] = [];
  expect(decodeLabels({ a: Buffer.from('b'), 'no key': Buffer.from(''), c: Buffer.from('not a value') }, damaged)).toEqual({ a: 'b' });
  expect(damaged).toEqual(['label "no key": no label', 'label "c": no label']);
});
