import { createLogger } from '@moefleet/runtime';
import type { BlobClient } from './blob-client';
import type { Chunk } from './manifest';
import { PeerSet } from './peer-set';

const log = createLogger('test', 'silent');
const client = { close() {} } as BlobClient;
const chunks: Chunk[] = Array.from({ length: 64 }, (_, at) => ({ sha256: `${((at * 2_654_435_761) >>> 0).toString(16).padStart(8, '0')}${'0'.repeat(56)}`, bytes: at === 63 ? 10 : 1000, offsets: [at * 1000] }));
const ROOM = { coordinator: 1000, peer: 1000 };
let nowMs = 0;
let set: PeerSet;

beforeEach(() => {
  jest.useFakeTimers();
  nowMs = 1_000_000;
  set = new PeerSet({ selfId: 'self', connect: () => client, now: () => nowMs, random: () => 0.5, log });
});
afterEach(() => {
  set.close();
  jest.useRealTimers();
});

const pass = (ms: number) => {
  nowMs += ms;
  jest.advanceTimersByTime(ms);
};
/** Of all chunks, those that this device would bring from the coordinator. */
const own = () => chunks.filter((chunk) => set.next([chunk], { coordinator: 1000, peer: 0 }).t === 'coordinator').length;

test('a chunk has one that brings it, and those of a device that does not move are brought by the next', () => {
  expect(own()).toBe(64);
  set.update([{ deviceId: 'other', address: 'a', whole: false }]);
  const shared = own();
  expect(shared).toBeGreaterThan(16);
  expect(shared).toBeLessThan(48);
  const next = set.next(chunks, { coordinator: 0, peer: 1000 });
  if (next.t !== 'peer') throw new Error(next.t);
  set.notYet(next.peer, 1000, 5);
  for (let s = 0; s < 35; s += 1) pass(1_000);
  expect(own()).toBe(64);
});

test('who moved when this device last looked is not blamed for the time in which this one stood still', () => {
  set.update([{ deviceId: 'other', address: 'a', whole: false }]);
  const shared = own();
  const next = set.next(chunks, { coordinator: 0, peer: 1000 });
  if (next.t !== 'peer') throw new Error(next.t);
  set.notYet(next.peer, 1000, 5);
  // Suspended: time has passed, and no timer ran.
  nowMs += 120_000;
  jest.advanceTimersByTime(1_000);
  expect(own()).toBe(shared);
});

test('while the coordinator\'s link is full, or closed, chunks of others are asked of them, and what is too large for the room of neither waits', () => {
  set.update([{ deviceId: 'other', address: 'a', whole: false }]);
  expect(set.next(chunks, { coordinator: 0, peer: 1000 }).t).toBe('peer');
  expect(set.next(chunks, ROOM).t).not.toBe('wait');
  expect(set.next(chunks.slice(0, 63), { coordinator: 0, peer: 999 }).t).toBe('wait');
  set.update([{ deviceId: 'other', address: 'a', whole: true }]);
  expect(set.next(chunks, { coordinator: 0, peer: 10 })).toMatchObject({ t: 'peer', chunk: { bytes: 10 } });
  expect(set.next(chunks, { coordinator: 1000, peer: 0 }).t).toBe('wait');
});
