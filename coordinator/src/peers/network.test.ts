import fc from 'fast-check';
import { isBeside, networkText, parseNetwork } from './network';

const beside = (a: string, b: string) => isBeside(parseNetwork(a)!, parseNetwork(b)!);

test('who is on one network is beside each other, also where one of them knows a wider one', () => {
  expect(beside('192.168.1.7/24', '192.168.1.200/24')).toBe(true);
  expect(beside('192.168.1.7/24', '192.168.2.7/24')).toBe(false);
  expect(beside('10.0.0.5/8', '10.0.0.200/24')).toBe(true);
  expect(beside('10.1.0.5/8', '10.0.0.200/24')).toBe(false);
  expect(beside('fd00::7/64', 'fd00::1:2:3:4/64')).toBe(true);
  expect(beside('fd00::7/64', 'fd00:0:0:1::7/64')).toBe(false);
  expect(beside('0.0.0.7/24', '::7/64')).toBe(false);
});

test.each(['', '192.168.1.7', '192.168.1.7/0', '192.168.1.7/33', '300.1.1.1/24', 'fe80::1/64', 'fd00::7/129', 'host/24', '1.2.3.4/24/24', ':::/3'])('%p is no network', (text) => expect(parseNetwork(text)).toBeNull());

test('names of one network are one, and nothing breaks it', () => {
  expect(networkText(parseNetwork('192.168.1.7/24')!)).toBe(networkText(parseNetwork('192.168.1.9/24')!));
  fc.assert(fc.property(fc.oneof(fc.string(), fc.ipV6().map((one) => `${one}/64`), fc.ipV4().map((one) => `${one}/20`)), (text) => {
    const network = parseNetwork(text);
    return network === null || isBeside(network, network);
  }), { numRuns: 300 });
});
