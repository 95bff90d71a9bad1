/** A model of random bytes as blobs in a folder, in chunks of one size. */
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { root } from '../shared.mjs';

const { ModelManifest } = createRequire(import.meta.url)(join(root, 'proto', 'dist', 'index.js'));

export const MIB = 1024 ** 2;
export const sha256 = (data) => createHash('sha256').update(data).digest();

/** `id`: hex of its manifest. */
export function makeModel(folder, modelBytes, chunkBytes) {
  mkdirSync(folder);
  const chunks = [];
  const whole = createHash('sha256');
  for (let left = modelBytes; left > 0; left -= chunkBytes) {
    const data = randomBytes(Math.min(left, chunkBytes));
    whole.update(data);
    chunks.push({ bytes: data.length, sha256: sha256(data) });
    writeFileSync(join(folder, sha256(data).toString('hex')), data);
  }
  const fileSha256 = whole.digest();
  const manifest = Buffer.from(ModelManifest.encode({ bytes: BigInt(modelBytes), sha256: fileSha256, modelHash: '', chunks }).finish());
  const id = sha256(manifest).toString('hex');
  writeFileSync(join(folder, id), manifest);
  return { folder, id, bytes: modelBytes, manifestBytes: manifest.length, fileSha256: fileSha256.toString('hex') };
}
