import { RouterWindow } from '@moefleet/proto';
import { packScores } from '@moefleet/edge-agent/engine';
import { readTrace, traceOfWindows } from './trace';
import { formatWindows, readWindowFile } from './window-file';

async function windowOf(fields: Partial<RouterWindow> = {}): Promise<RouterWindow> {
  const scores = Float32Array.from({ length: 3 * 2 * 8 }, (_, i) => (i * 7) % 11);
  return RouterWindow.fromPartial({ windowId: 'w', modelHash: 'ab', tokens: 3, layers: 2, experts: 8, topK: 2, moeLayers: [1, 4], expertBytes: [5n, 6n], timeMs: 5n, ...await packScores(scores, 8), ...fields });
}
const fileOf = (windows: RouterWindow[]) => Buffer.concat([...formatWindows(windows)]);

test('windows come back as they were written, oldest first, one after another', async () => {
  const windows = [await windowOf({ windowId: 'later', timeMs: 9n }), await windowOf()];
  expect(readWindowFile('f', fileOf(windows)).map(({ windowId }) => windowId)).toEqual(['later', 'w']);
  const trace = await readTrace('f', fileOf(windows), null);
  expect(trace).toMatchObject({ kind: 'quantised scores', experts: 8, topK: 2, layers: [1, 4], layerEvents: [6, 6], expertBytes: [5, 6], skipped: [], bent: false });
  expect(trace.rows).toHaveLength(6 * 2 * 16);
});

test('what cannot be replayed is left out and named; with nothing left that is said', async () => {
  const odd = [await windowOf({ windowId: 'old', topK: 0 }), await windowOf({ windowId: 'other', modelHash: 'cdef' }), await windowOf({ windowId: 'short', tokens: 2 })];
  const { skipped, layerEvents } = await traceOfWindows('phone-1', [await windowOf(), await windowOf(), ...odd]);
  expect(layerEvents).toEqual([6, 6]);
  expect(skipped).toEqual([expect.stringMatching(/old: of an earlier agent/), expect.stringMatching(/other: of another model, cdef/), expect.stringMatching(/short: .*damaged/)]);
  await expect(traceOfWindows('phone-1', [odd[0]!])).rejects.toThrow(/phone-1: no router window.*windows enable/);
  await expect(traceOfWindows('phone-1', [])).rejects.toThrow(/phone-1: no router window/);
});

test('a damaged file is refused with the place of the damage', async () => {
  const good = fileOf([await windowOf(), await windowOf()]);
  const second = 12 + good.readUInt32LE(8);
  expect(() => readWindowFile('f', good.subarray(0, good.length - 1))).toThrow(new RegExp(`f: window 2, at byte ${second}: .*cut short`));
  expect(() => readWindowFile('f', good.subarray(0, second + 2))).toThrow(/says no bytes/);
  const broken = Buffer.from(good);
  broken.fill(0xff, 12, 30);
  expect(() => readWindowFile('f', broken)).toThrow(/f: window 1, at byte 8/);
  await expect(readTrace('f', Buffer.from([0xff, 0xfe, 0]), null)).rejects.toThrow(/f is neither a route file/);
});
