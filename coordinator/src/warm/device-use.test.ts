import { EffectiveSpec, ExpertUse, RouterWindow } from '@moefleet/proto';
import { type UseOwner, withEntropy, withReport } from './device-use';

const owner: UseOwner = { deviceId: 'a', modelHash: 'ab', layers: 2, experts: 4, effective: EffectiveSpec.fromPartial({ lambda: 0.2, topJ: 1 }), nowMs: 5 };
const bent: UseOwner = { ...owner, effective: EffectiveSpec.fromPartial({ lambda: 0.1, topJ: 1 }) };

function report(tokens: number, wanted: number[], chosen: number[] = []): ExpertUse {
  return ExpertUse.fromPartial({ modelHash: 'ab', experts: 4, tokens: BigInt(tokens), layers: [{ wanted, chosen }, { wanted, chosen }] });
}

const window = (bits: number[], over: Partial<RouterWindow> = {}) => RouterWindow.fromPartial({ modelHash: 'ab', experts: 4, tokens: 2048, entropyBits: bits, ...over });

test('sums reports in sixteenths and forgets by half in 2,048 tokens; what was not told of as chosen was what was wanted', () => {
  const first = withReport(null, report(2048, [2048, 1024]), owner);
  expect(first).toMatchObject({ deviceId: 'a', modelHash: 'ab', experts: 4, timeMs: 5n, lambda: 0.2, topJ: 1, now: { tokens: 2048 } });
  expect(first.now!.layers[1]).toEqual({ wanted: [32_768, 16_384], chosen: [32_768, 16_384] });
  const second = withReport(first, report(2048, [0, 0, 0, 2048], [2048]), owner);
  expect(second.now!.tokens).toBe(3072);
  expect(second.now!.layers[0]).toEqual({ wanted: [16_384, 8192, 0, 32_768], chosen: [49_152, 8192] });
});

test('a rare expert fades, and a report of very many tokens is no larger than one of 4,096', () => {
  let use = withReport(null, report(4096, [1]), owner);
  expect(use.now!.layers[0]!.wanted).toEqual([16]);
  for (let i = 0; i < 4; i += 1) use = withReport(use, report(4096, []), owner);
  expect(use.now!.layers[0]!.wanted).toEqual([]);
  expect(withReport(null, report(1_000_000, [1_000_000]), owner).now).toMatchObject({ tokens: 4096, layers: [{ wanted: [65_536] }, {}] });
});

test('with another λ it begins anew, and what was wanted is the reference from then on', () => {
  const short = withReport(null, report(500, [500]), owner);
  expect(short.reference).toBeUndefined();
  const usual = withReport(short, report(1500, [1500]), owner);
  expect(usual.reference).toMatchObject({ layers: [{ wanted: [expect.any(Number)], chosen: [] }, {}] });
  const other = withReport(usual, report(100, [0, 100]), bent);
  expect(other.now).toMatchObject({ tokens: 100, layers: [{ wanted: [0, 1600] }, {}] });
  expect(other.reference!.layers).toEqual(usual.now!.layers.map(({ wanted }) => ({ wanted, chosen: [] })));
  // Too little was seen in between to say what is usual.
  expect(withReport(other, report(100, [0, 0, 100]), owner).reference).toEqual(other.reference);
});

test('another model voids everything', () => {
  const use = withReport(null, report(2048, [2048]), owner);
  expect(withReport(use, report(10, [10]), { ...owner, modelHash: 'cd' })).toMatchObject({ modelHash: 'cd', reference: undefined, now: { tokens: 10 } });
});

test('entropy of windows is kept beside it, and one that cannot be true changes nothing', () => {
  const use = withEntropy(withReport(null, report(2048, [2048]), owner), window([1, 2]), owner)!;
  expect(use.now!.entropyBits).toEqual([1, 2]);
  expect(use.reference!.entropyBits).toEqual([1, 2]);
  expect(withEntropy(use, window([2, 2]), owner)!.now!.entropyBits).toEqual([1.5, 2]);
  expect(withEntropy(use, window([2, 2]), owner)!.reference!.entropyBits).toEqual([1, 2]);
  for (const wrong of [window([1]), window([1, 2.1]), window([1, Number.NaN]), window([1, 1], { modelHash: 'cd' }), window([1, 1], { experts: 8 })]) expect(withEntropy(use, wrong, owner)).toBeNull();
});
