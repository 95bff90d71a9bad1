import { type Decoded, decodedByStock, figuresOf } from './decoded';

const token = (startNs: number, endNs: number, misses: number, stallNs: number) =>
  ({ startNs, endNs, nll: 2, engine: { slots: 24, misses, flashBytes: misses * 1e6, stallNs } });
const DECODED: Decoded = {
  tokens: [token(0, 100e6, 24, 80e6), token(100e6, 140e6, 6, 10e6), token(140e6, 160e6, 0, 0), token(160e6, 200e6, 6, 10e6)],
  peakRssBytes: 1, cpuSeconds: 1, void: null,
};

test('figures are of the tokens after the warm-up alone', () => {
  expect(figuresOf(DECODED, 1)).toEqual({
    tokens: 3, msPerToken: expect.closeTo(100 / 3) as number, tokensPerSecond: 30, missRate: 12 / 72, flashBytesPerToken: 4e6, readBytesPerSecond: 600e6, stallShare: 0.2, crossEntropy: 2,
  });
  expect(figuresOf(DECODED, 0, 1)).toMatchObject({ tokens: 1, msPerToken: 100, missRate: 1 });
  expect(figuresOf(DECODED, 4)).toBeNull();
});

test('the stock library tells times and likelihoods, and no more', () => {
  const decoded = decodedByStock('{"startNs":[0,5000000],"endNs":[4000000,10000000],"nll":[1,3],"peakRssBytes":7,"cpuSeconds":0.5}\n');
  expect(decoded).toMatchObject({ peakRssBytes: 7, cpuSeconds: 0.5, void: null });
  expect(figuresOf(decoded, 0)).toEqual({
    tokens: 2, msPerToken: 5, tokensPerSecond: 200, missRate: null, flashBytesPerToken: null, readBytesPerSecond: null, stallShare: null, crossEntropy: 2,
  });
});
