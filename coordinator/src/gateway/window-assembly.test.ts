import { RouterWindow, type WindowAck } from '@moefleet/proto';
import { InvalidRequestError, RegistryUnavailableError } from '../errors';
import { Metrics } from '../metrics';
import { until } from '../../../test/harness/ports';
import { MOST_WINDOW_BYTES, WINDOW_CHUNK_BYTES, WindowAssembly, WindowRoom } from './window-assembly';

const window = RouterWindow.fromPartial({ windowId: 'w-1', tokens: 2, layers: 1, experts: 4, data: Buffer.alloc(100_000, 7) });
const body = Buffer.from(RouterWindow.encode(window).finish());

function assembly(room = new WindowRoom(), store: (window: RouterWindow) => Promise<void> = async () => {}) {
  const acks: WindowAck[] = [];
  const stored: RouterWindow[] = [];
  const errors: unknown[] = [];
  const sink = { acknowledge: (ack: WindowAck) => void acks.push(ack), store: async (one: RouterWindow) => { await store(one); stored.push(one); } };
  return { acks, stored, errors, it: new WindowAssembly(sink, room, new Metrics(), (error) => errors.push(error)) };
}
const chunk = (offset: number, bytes = WINDOW_CHUNK_BYTES, of = body, windowId = 'w-1') => ({ windowId, offset, totalBytes: of.length, data: of.subarray(offset, offset + bytes) });

test('a window in parts is stored, and acknowledged when it is', async () => {
  const { it, acks, stored } = assembly();
  it.take(chunk(0));
  expect(acks).toEqual([{ windowId: 'w-1', receivedBytes: WINDOW_CHUNK_BYTES, stored: false, refused: '', retryAfterMs: 0 }]);
  it.take(chunk(WINDOW_CHUNK_BYTES));
  await until('stored', () => acks.length === 2, 5000, 2);
  expect(acks[1]).toMatchObject({ stored: true, refused: '' });
  expect(stored).toEqual([window]);
});

test('what comes out of order begins anew', () => {
  const { it, acks } = assembly();
  it.take(chunk(WINDOW_CHUNK_BYTES));
  expect(acks.at(-1)).toMatchObject({ stored: false, receivedBytes: 0, retryAfterMs: expect.any(Number) });
  expect(acks.at(-1)!.retryAfterMs).toBeGreaterThan(0);
  it.take(chunk(0));
  it.take({ ...chunk(WINDOW_CHUNK_BYTES), windowId: 'w-2' });
  expect(acks.at(-1)).toMatchObject({ windowId: 'w-2', receivedBytes: 0 });
});

test('while Redis is away the device keeps it; what is no window is refused for good', async () => {
  const away = assembly(new WindowRoom(), async () => { throw new RegistryUnavailableError('redis://nowhere', new Error('gone')); });
  away.it.take(chunk(0));
  away.it.take(chunk(WINDOW_CHUNK_BYTES));
  await until('answered', () => away.acks.length === 2, 5000, 2);
  expect(away.acks[1]).toMatchObject({ stored: false, refused: '' });
  expect(away.acks[1]!.retryAfterMs).toBeGreaterThan(0);

  const { it, acks, stored } = assembly();
  const nonsense = Buffer.alloc(30, 0xff);
  it.take(chunk(0, 30, nonsense));
  const other = Buffer.from(RouterWindow.encode({ ...window, windowId: 'other', data: Buffer.of(1) }).finish());
  await until('answered', () => acks.length === 1, 5000, 2);
  it.take(chunk(0, other.length, other));
  await until('answered', () => acks.length === 2, 5000, 2);
  expect(acks.map(({ refused }) => refused)).toEqual([expect.stringMatching(/window_chunk.data/), expect.stringMatching(/window_id/)]);
  expect(stored).toEqual([]);
});

test('all devices together take no more than there is room for, and give it back', async () => {
  const room = new WindowRoom(150_000);
  const [one, two] = [assembly(room), assembly(room)];
  one.it.take(chunk(0));
  two.it.take(chunk(0));
  expect(two.acks.at(-1)!.retryAfterMs).toBeGreaterThan(0);
  one.it.close();
  two.it.take(chunk(0));
  two.it.take(chunk(WINDOW_CHUNK_BYTES));
  await until('stored', () => two.stored.length === 1, 5000, 2);
  one.it.take(chunk(0));
  expect(room.take(60_000)).toBe(false);
});

test.each([
  [{ windowId: '' }, /window_id/], [{ windowId: 'a b' }, /window_id/], [{ windowId: 'x'.repeat(65) }, /window_id/], [{ totalBytes: 0 }, /total_bytes/],
  [{ totalBytes: MOST_WINDOW_BYTES + 1 }, /total_bytes/], [{ data: Buffer.alloc(0) }, /data/], [{ data: Buffer.alloc(WINDOW_CHUNK_BYTES + 1) }, /data/],
  [{ offset: 100_000 }, /offset/], [{ offset: 4_294_967_295 }, /offset/],
])('a part that makes no sense ends the stream: %j', (fields, says) => {
  const { it } = assembly();
  expect(() => it.take({ ...chunk(0), ...fields })).toThrow(InvalidRequestError);
  expect(() => it.take({ ...chunk(0), ...fields })).toThrow(says);
});
