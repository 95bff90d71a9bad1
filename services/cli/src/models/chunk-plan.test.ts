import fc from 'fast-check';
import { type ChunkPlace, chunkPlan } from './chunk-plan';

const KIB = 1024;
type Model = Parameters<typeof chunkPlan>[0];

/** A model of two layers with 8 experts each: a header, an embedding, and per layer a router and three expert tensors. */
function model(headerBytes: number, expertBytes: number): Model {
  const tensors: Model['tensors'] = [];
  let offset = Math.ceil(headerBytes / 4096) * 4096;
  const add = (name: string, bytes: number) => {
    tensors.push({ name, file: 0, offset, bytes, type: 'q8_0', shape: [] });
    offset += Math.ceil(bytes / 4096) * 4096;
  };
  add('token_embd.weight', 2600 * KIB);
  for (const layer of [0, 1]) {
    add(`blk.${layer}.attn_norm.weight`, 700);
    add(`blk.${layer}.ffn_gate_inp.weight`, 20 * KIB);
    for (const part of ['gate', 'up', 'down']) add(`blk.${layer}.ffn_${part}_exps.weight`, 8 * expertBytes);
  }
  return { fileBytes: offset, tensors, moeLayers: [0, 1], experts: 8 };
}

const covers = (chunks: ChunkPlace[], bytes: number) => chunks.reduce((at, chunk) => (chunk.offset === at && chunk.bytes > 0 ? at + chunk.bytes : NaN), 0) === bytes;

test('an expert of some size is a chunk of its own in each of its tensors', () => {
  const wide = model(9000, 864 * KIB);
  const chunks = chunkPlan(wide);
  for (const { name, offset } of wide.tensors.filter(({ name }) => name.endsWith('exps.weight'))) {
    for (let expert = 0; expert < 8; expert += 1) expect([name, chunks.find((chunk) => chunk.offset === offset + expert * 864 * KIB)?.bytes]).toEqual([name, 864 * KIB]);
  }
});

test('small experts are joined within their tensor, large ones cut, and nothing is above 2 MiB', () => {
  const small = chunkPlan(model(9000, 40 * KIB));
  const starts = new Set(small.map(({ offset }) => offset));
  for (const { offset, name } of model(9000, 40 * KIB).tensors.filter(({ name }) => /_exps/.test(name) && !/gate_exps/.test(name))) expect([name, starts.has(offset)]).toEqual([name, true]);
  expect(Math.max(...small.filter(({ offset }) => offset > 2700 * KIB).map(({ bytes }) => bytes))).toBeLessThanOrEqual(256 * KIB);
  const large = chunkPlan(model(9000, 5000 * KIB));
  expect(Math.max(...large.map(({ bytes }) => bytes))).toBeLessThanOrEqual(1536 * KIB);
});

test('a longer header moves every chunk and cuts none anew', () => {
  const sizes = (headerBytes: number) => chunkPlan(model(headerBytes, 100 * KIB)).slice(1).map(({ bytes }) => bytes);
  expect(sizes(50_000)).toEqual(sizes(9000));
});

test('whatever the file is like, its chunks are the file', () => {
  fc.assert(fc.property(fc.integer({ min: 24, max: 6_000_000 }), fc.integer({ min: 1, max: 3_000_000 }), fc.integer({ min: 1, max: 9 }), (header, expert, experts) => {
    const any = { ...model(header, expert), experts };
    const chunks = chunkPlan(any);
    expect([covers(chunks, any.fileBytes), Math.max(...chunks.map(({ bytes }) => bytes)) <= 2048 * KIB]).toEqual([true, true]);
  }), { numRuns: 200 });
  expect(covers(chunkPlan({ fileBytes: 100, tensors: [], moeLayers: [], experts: 0 }), 100)).toBe(true);
});
