import { TelemetryFrame } from '@moefleet/proto';
import fc from 'fast-check';
import { frame, SHAPE } from './testing/synthetic';
import { windowBetween } from './telemetry-window';

const before = frame({ sequence: 1, tokens: 100 });
const after = frame({ sequence: 2, tokens: 400 });
type Layer = TelemetryFrame['layers'][number];
const layered = (change: (layer: Layer) => Partial<Layer>): TelemetryFrame => ({ ...after, layers: after.layers.map((layer) => ({ ...layer, ...change(layer) })) });

test('tells what was decoded, missed and waited for between two frames', () => {
  const outcome = windowBetween(before, after, SHAPE);
  expect(outcome).toMatchObject({ t: 'window', window: { tokens: 300, decodeNs: 6e9, missBytes: 2 * 300 * (1 << 20), readBytes: 1 << 20 } });
  if (outcome.t !== 'window') throw new Error(outcome.t);
  expect(outcome.window.massLost).toBeCloseTo(0.01, 9);
  expect(outcome.window.stallNsPerByte! * 2 * (1 << 20)).toBeCloseTo(1e6, 3);
  expect(outcome.window.readNs).toBe(1500);
});

test('a first frame, the same frame, an older one and an idle device tell nothing', () => {
  expect(windowBetween(undefined, after, SHAPE)).toEqual({ t: 'nothing' });
  expect(windowBetween(after, after, SHAPE)).toEqual({ t: 'nothing' });
  expect(windowBetween(after, before, SHAPE)).toEqual({ t: 'nothing' });
  expect(windowBetween(before, frame({ sequence: 2, tokens: 105 }), SHAPE)).toEqual({ t: 'nothing' });
});

test('an agent whose engine has not answered yet tells nothing, and is not held to it', () => {
  const silent = { ...frame({ sequence: 2 }), layers: [] };
  expect(windowBetween(before, silent, SHAPE)).toEqual({ t: 'nothing' });
  expect(windowBetween(undefined, silent, SHAPE)).toEqual({ t: 'nothing' });
  expect(windowBetween(silent, frame({ sequence: 3, tokens: 400 }), SHAPE)).toEqual({ t: 'nothing' });
});

test.each<[string, TelemetryFrame, RegExp]>([
  ['NaN', layered(() => ({ massLost: Number.NaN })), /massLost is NaN/],
  ['infinity', layered(() => ({ rangeMean: Infinity })), /rangeMean is Infinity/],
  ['more mass lost than there is', layered(() => ({ massLost: 1e6 })), /expected at most one per event/],
  ['more experts than the model has', layered(() => ({ capacity: 33 })), /33 experts of capacity, the model has 32/],
  ['layers of another model', { ...after, layers: after.layers.slice(1) }, /it counts for 1 layers, its model has 2/],
  ['hits it cannot have had', layered((layer) => ({ hits: layer.hits * 2n })), /slots, 300 tokens of top 4 make 1200/],
  ['tokens it cannot have routed', { ...after, decodeTokens: 4000n }, /routing events for 3900 decoded tokens/],
  ['misses it cannot have read', { ...after, flashBytes: before.flashBytes + 1000n }, /it cannot have read what it missed/],
  ['counters that fall', { ...after, decodeNs: 1n }, /decodeNs fell from 2000000000 to 1/],
  ['a layer\'s counters that fall', layered(() => ({ swaps: 0n, hits: 1n })), /hits fell from/],
  ['more decoding than time', { ...after, decodeNs: 10n ** 12n }, /of decoding within 10000 ms/],
  ['no time at all', { ...after, decodeNs: before.decodeNs }, /300 tokens in 0 ns/],
])('sets %s aside, and says why', (_, frame, reason) => {
  const outcome = windowBetween(before, frame, SHAPE);
  expect(outcome.t).toBe('quarantine');
  if (outcome.t === 'quarantine') expect(outcome.reason).toMatch(reason);
});

test('a device that calls misses hits is given away by what it read', () => {
  const lying = layered((layer) => ({ hits: layer.hits + layer.misses - 100n, misses: 100n }));
  expect(windowBetween({ ...before, flashBytes: 0n }, { ...lying, flashBytes: 3n * 10n ** 9n }, SHAPE)).toMatchObject({ t: 'unclear', reason: expect.stringMatching(/its hits are not what it says/) });
});

describe('a device that tells what it read to score texts', () => {
  const told = (frame: TelemetryFrame, evaluationBytes: bigint, flashBytes = frame.flashBytes): TelemetryFrame => ({ ...frame, evaluationBytes, flashBytes: flashBytes + evaluationBytes });
  // A quarter of the slots missed, of which it tells a tenth.
  const lying = layered((layer) => ({ hits: layer.hits + 270n, misses: layer.misses - 270n }));

  test('is not believed where it calls misses hits', () => {
    const outcome = windowBetween(told(before, 0n), told(lying, 0n), SHAPE);
    expect(outcome).toEqual({ t: 'quarantine', reason: 'it read 600.0 MiB, of which its misses explain 60.0 MiB: its hits are not what it says' });
    expect(windowBetween(told(before, 10n ** 9n), told(lying, 10n ** 10n), SHAPE)).toMatchObject({ t: 'quarantine' });
  });

  test('is not learnt from while it is measured, and not held against it, however often', () => {
    for (const bytes of [10n ** 9n, 10n ** 11n]) expect(windowBetween(told(before, 0n), told(after, bytes), SHAPE)).toMatchObject({ t: 'unclear' });
  });

  test('may have an engine that was started meanwhile, and with it another model', () => {
    expect(windowBetween(told(before, 0n), { ...told(lying, 0n), hostStarts: before.hostStarts + 1 }, SHAPE)).toMatchObject({ t: 'unclear' });
  });

  test('may be in the middle of a prompt, whose misses count before its bytes do', () => {
    const prompt = (frame: TelemetryFrame): TelemetryFrame => ({ ...frame, layers: frame.layers.map((layer) => ({ ...layer, prefillMisses: 32n })) });
    const bytes = 2n * 32n * (1n << 20n);
    expect(windowBetween(told(before, 0n), told(prompt(after), 0n), SHAPE)).toMatchObject({ t: 'window' });
    expect(windowBetween(told(prompt(before), 0n), told(prompt(after), 0n, after.flashBytes + bytes), SHAPE).t).not.toBe('quarantine');
    const none = (frame: TelemetryFrame): TelemetryFrame => ({ ...frame, layers: frame.layers.map((layer) => ({ ...layer, hits: layer.hits + layer.misses, misses: 0n })) });
    expect(windowBetween(told(prompt(none(before)), 0n, 0n), told(prompt(none(after)), 0n, bytes), SHAPE).t).not.toBe('quarantine');
  });
});

test('reads that no miss explains (a measurement) are not learnt from, and not held against the device', () => {
  expect(windowBetween(before, { ...after, flashBytes: after.flashBytes + 10n ** 10n }, SHAPE)).toMatchObject({ t: 'unclear' });
});

test('whatever two frames say, it answers, and what it lets through is sound', () => {
  const count = fc.bigInt({ min: 0n, max: 2n ** 40n });
  const real = fc.oneof(fc.double(), fc.double({ min: 0, max: 10, noNaN: true }));
  const layer = fc.record({ layer: fc.nat(3), capacity: fc.nat(40), resident: fc.nat(40), hits: count, misses: count, swaps: count, prefillHits: count, prefillMisses: count, massLost: real, events: count, rangeMean: real });
  const any = fc.record({
    sequence: count, timeMs: count, decodeTokens: fc.oneof(count, fc.constant(300n)), decodeNs: count, stallNs: count, flashBytes: count, flashReads: count,
    readMicrosLog2: fc.array(count, { maxLength: 30 }), layers: fc.array(layer, { maxLength: 3 }),
  }).map((fields) => TelemetryFrame.fromPartial(fields));
  fc.assert(fc.property(fc.oneof(any, fc.constant(before)), fc.oneof(any, fc.constant(after)), (a, b) => {
    const outcome = windowBetween(a, b, SHAPE);
    if (outcome.t !== 'window') return;
    const { window } = outcome;
    for (const value of [window.tokens, window.decodeNs, window.missBytes, window.massLost, window.readNs, window.readBytes]) expect(Number.isFinite(value) && value >= 0).toBe(true);
    expect(window.decodeNs).toBeGreaterThan(0);
  }), { numRuns: 500 });
});
