import { inspectModel } from '@moefleet/edge-agent/engine';
import { join } from 'node:path';
import { formatRoutes, parseRoutes } from './route-file';

const MODEL = join(__dirname, '..', '..', '..', 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');
const HEADER = 'turn,phase,step,layer,slot,expert,weight';
const parse = (lines: string[], phase: number | null = null) => parseRoutes('r.csv', lines.join('\n'), phase);

test('groups the events of each layer, best ranked first, whatever the order of the columns', () => {
  const parsed = parse(['# route_trace v1', '# model=m n_layer=9 n_expert=16 n_expert_used=2', '# layer=2 expert_bytes=64 dense_bytes=8', '# layer=7 expert_bytes=32', 'expert,slot,layer,step,phase,turn',
    '3,0,2,5,1,0', '1,1,2,5,1,0', '4,0,7,5,1,0', '3,0,2,6,1,0', '2,1,2,6,1,0', '9,0,7,6,1,0', '1,1,7,6,1,0']);
  expect(parsed).toEqual({ experts: 16, topK: 2, phase: 1, layers: [2, 7], layerEvents: [2, 2], routes: Int32Array.of(3, 1, 3, 2, 4, -1, 9, 1), changes: new Int32Array(), expertBytes: [64, 32] });
});

test('places a change of capacity before the next event of its layer, in either phase', () => {
  const lines = [HEADER, '0,0,0,5,0,1,1', '# capacity layer=5 experts=9', '0,1,1,5,0,1,1', '# capacity layer=7 experts=8', '0,1,1,7,0,1,1', '0,1,2,5,0,1,1', '# capacity layer=5 experts=4', '0,1,2,7,0,1,1'];
  expect([...parse(lines, 1).changes]).toEqual([0, 0, 9, 1, 0, 8, 0, 2, 4]);
  expect([...parse(lines, 0).changes]).toEqual([0, 1, 9, 0, 1, 4]);
  expect(() => parse([HEADER, '# capacity 5'])).toThrow(/r.csv:2: '# capacity 5' is no change of capacity; write it as/);
  expect(() => parse([HEADER, '# capacity layer=5 experts=0'])).toThrow(/r.csv:2: experts: '0' is no whole number from 1/);
});

test('takes decode by default, which is recorded token by token, and any phase by number', () => {
  const prompt = ['0,0,0,0,0,1,nan', '0,0,1,0,0,2,nan', '0,0,0,1,0,3,nan', '0,0,1,1,0,4,nan'];
  const decode = ['0,1,2,0,0,5,0.5', '0,1,2,1,0,6,0.5', '0,1,3,0,0,7,0.5', '0,1,3,1,0,8,0.5'];
  expect(parse([HEADER, ...prompt, ...decode])).toMatchObject({ phase: 1, routes: Int32Array.of(5, 7, 6, 8), experts: 9 });
  expect(parse([HEADER, ...prompt, ...decode], 0)).toMatchObject({ phase: 0, routes: Int32Array.of(1, 2, 3, 4) });
  // The number alone says nothing: elsewhere decode is 0.
  expect(parse([HEADER, ...decode.map((row) => row.replace('0,1,', '0,0,'))])).toMatchObject({ phase: 0, layerEvents: [2, 2] });
  expect(() => parse([HEADER, ...prompt])).toThrow(/r.csv holds no decode rows: .*--phase 0/);
  expect(() => parse([HEADER, ...decode], 3)).toThrow(/--phase: r.csv holds no rows of phase 3; use 1/);
});

test('reads back what it writes, prompts and dropped experts included', async () => {
  const info = await inspectModel(MODEL);
  const [tokens, context, prompt] = [12, 6, 2];
  const routes = Int32Array.from({ length: tokens * 6 * 4 }, (_, i) => (i % 20 === 3 ? -1 : (i * 7 + Math.floor(i / 24)) % 32));
  const text = [...formatRoutes(info, routes, context, prompt)].join('');
  expect(text.split('\n')[1]).toBe('# model=tinymoe-17m arch=qwen2moe n_layer=6 n_expert=32 n_expert_used=4');
  const of = (steps: (step: number) => boolean) => Array.from({ length: 6 }, (_, layer) => Array.from({ length: tokens }, (_, token) => token)
    .filter((token) => steps(token % context)).flatMap((token) => [...routes.subarray((token * 6 + layer) * 4, (token * 6 + layer + 1) * 4)]));
  expect([...parseRoutes('r.csv', text, null).routes]).toEqual(of((step) => step >= prompt).flat());
  expect(parseRoutes('r.csv', text, 0)).toMatchObject({ phase: 0, layerEvents: Array(6).fill(4) });
  expect([...parseRoutes('r.csv', text, 0).routes]).toEqual(of((step) => step < prompt).flat());
});

test.each([
  ['an empty file', [], /r.csv holds no routes; it needs a header/],
  ['a header alone', [HEADER], /holds no routes/],
  ['a file without a header', ['0,0,0,0,0,1,nan'], /r.csv:1: the header has no column turn, phase.*: '0,0,0,0,0,1,nan'/],
  ['a header without a column', ['turn,phase,step,layer,expert'], /r.csv:1: the header has no column slot/],
  ['a short row', [HEADER, '0,0,0,0,0,1,nan', '0,0,1,0'], /r.csv:3: 4 values for 7 columns: '0,0,1,0'; complete the row/],
  ['an expert that is no number', [HEADER, '0,0,0,0,0,x,nan'], /r.csv:2: expert: 'x' is no whole number from 0 to 65535; correct it/],
  ['an expert that the model does not have', ['# n_expert=8', HEADER, '0,0,0,0,0,8,nan'], /r.csv:3: expert: '8' is no whole number from 0 to 7/],
  ['a negative step', [HEADER, '0,0,-1,0,0,1,nan'], /r.csv:2: step: '-1'/],
  ['a number of experts that is none', ['# n_expert=many', HEADER], /r.csv:1: n_expert: 'many'/],
  ['a token that uses an expert twice', [HEADER, '0,0,0,0,0,1,nan', '0,0,0,0,1,1,nan'], /r.csv:3: expert: 1 stands twice/],
  ['an event that begins in the middle', [HEADER, '0,0,0,0,1,1,nan'], /r.csv:2: slot: 1 where 0 is due/],
  ['an event with a gap', [HEADER, '0,0,0,0,0,1,nan', '0,0,0,0,2,2,nan'], /r.csv:3: slot: 2 where 1 is due/],
  ['an event that comes again', [HEADER, '0,0,0,0,0,1,nan', '0,0,0,1,0,1,nan', '0,0,0,0,0,2,nan'], /r.csv:4: step: turn 0, step 0 of layer 0 comes after turn 0, step 0/],
  ['more experts per token than any model takes', [HEADER, ...Array.from({ length: 129 }, (_, i) => `0,0,0,0,${i},${i},nan`)], /r.csv:130: slot: '128' is no whole number from 0 to 127/],
])('refuses %s', (_, lines, message) => {
  expect(() => parse(lines)).toThrow(message);
});
