import { ModelManifest } from '@moefleet/proto';
import { ManifestError, readManifest } from './manifest';
import { chunksOf, modelOf, sha256 } from './testing/blob-site';

const read = (over: Partial<ModelManifest>) => {
  const { serialised, manifest } = modelOf(chunksOf(2, 100));
  const changed = Buffer.from(ModelManifest.encode({ ...ModelManifest.decode(serialised), ...over }).finish());
  return () => readManifest(changed, sha256(changed), manifest.bytes);
};
const chunk = (bytes: number, hash = Buffer.alloc(32)) => ({ bytes, sha256: hash });

test('chunks of one content are one chunk with several places', () => {
  const [a, b] = chunksOf(2, 100) as [Buffer, Buffer];
  const { manifest } = modelOf([a, b, a]);
  expect(manifest).toMatchObject({ bytes: 300, largestChunkBytes: 100, chunks: [{ sha256: sha256(a), offsets: [0, 200] }, { sha256: sha256(b), offsets: [100] }] });
});

test.each([
  ['no chunks', { chunks: [] }, /0 chunks/],
  ['a chunk without bytes', { chunks: [chunk(0)] }, /chunk 0 has 0 bytes/],
  ['a chunk that is too large', { chunks: [chunk(9 * 1024 ** 2)] }, /chunk 0 has 9437184 bytes/],
  ['a hash that is too short', { chunks: [chunk(200, Buffer.alloc(31))] }, /31 bytes, 32 were expected/],
  ['one hash for two sizes', { chunks: [chunk(120), chunk(80)] }, /another with 120 bytes, and 80/],
  ['sizes that do not add up', { chunks: [chunk(150)] }, /150 bytes, it says 200/],
  ['another model\'s size', { bytes: 150n, chunks: [chunk(150)] }, /of 150 bytes, 200 were announced/],
  ['a file hash that is none', { sha256: Buffer.alloc(4) }, /has 4 bytes, 32/],
])('%s is refused', (_, over, says) => {
  expect(read(over)).toThrow(ManifestError);
  expect(read(over)).toThrow(says);
});

test('bytes with another hash, and bytes that are no manifest, are refused', () => {
  const junk = Buffer.from([255, 255, 255]);
  expect(() => readManifest(junk, 'ab'.repeat(32))).toThrow(/arrived/);
  expect(() => readManifest(junk, sha256(junk))).toThrow(/cannot be decoded/);
});
