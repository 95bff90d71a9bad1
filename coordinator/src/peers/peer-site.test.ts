import { parseNetwork } from './network';
import { type Holder, MOST_PEERS, peersOf, placeOf } from './peer-site';

const networks = (...texts: string[]) => texts.map((text) => parseNetwork(text)!);
const holder = (deviceId: string, ...texts: string[]): Holder => ({ deviceId, port: 9000, networks: networks(...texts), whole: false });

test('a place is the label\'s, else the network the coordinator sees, else whatever address a translator shows', () => {
  const home = networks('192.168.1.7/24', '127.0.0.1/8');
  expect(placeOf('plant 3', '192.168.1.7', home)).toBe('site plant 3');
  const seen = placeOf('', '::ffff:192.168.1.7', home);
  expect([seen, placeOf('', '192.168.1.9', networks('192.168.1.9/24'))]).toEqual([expect.stringMatching(/^network v4/), seen]);
  expect(placeOf('', '203.0.113.5', home)).toBe('from 203.0.113.5');
  expect(placeOf('', '127.0.0.1', home)).toBe('from 127.0.0.1');
  // Two homes with the same private network.
  expect(placeOf('', '203.0.113.6', home)).not.toBe(placeOf('', '203.0.113.5', home));
  expect(placeOf('', 'unknown', [])).toBe('from unknown');
});

test('a peer\'s address is the one on the network that both are on; only a site may be routed', () => {
  const self = holder('a', '10.1.0.2/24', '192.168.1.2/24');
  const others = [self, holder('b', '172.16.0.3/16', '192.168.1.3/24'), holder('c', '172.16.0.4/16')];
  expect(peersOf(self, others, false)).toEqual([{ deviceId: 'b', address: '192.168.1.3:9000', whole: false }]);
  expect(peersOf(self, others, true).map(({ address }) => address)).toEqual(['192.168.1.3:9000', '172.16.0.4:9000']);
  expect(peersOf(holder('a', 'fd00::1/64'), [holder('b', 'fd00::2/64')], false)[0]!.address).toBe('[fd00::2]:9000');
});

test('of a thousand in a place each knows some, no more than a list may have, and nearly all are known to those they know', () => {
  const all = Array.from({ length: 1000 }, (_, at) => holder(`board-${at}`, `10.0.${at >> 8}.${at & 255}/16`));
  const lists = new Map(all.map((self) => [self.deviceId, peersOf(self, all, false).map(({ deviceId }) => deviceId)]));
  expect(Math.max(...[...lists.values()].map((list) => list.length))).toBeLessThanOrEqual(MOST_PEERS);
  expect(Math.min(...[...lists.values()].map((list) => list.length))).toBeGreaterThan(10);
  const pairs = [...lists].flatMap(([a, list]) => list.map((b) => lists.get(b)!.includes(a)));
  expect(pairs.filter(Boolean).length / pairs.length).toBeGreaterThan(0.95);
});
