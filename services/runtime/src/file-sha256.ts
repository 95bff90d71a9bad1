/** SHA-256 of files of any size. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';

/** In hexadecimal; of the first `bytes` of the file, of all of it where unset. */
export async function fileSha256(path: string, bytes?: number): Promise<string> {
  const hash = createHash('sha256');
  if (bytes === 0) return hash.digest('hex');
  for await (const part of createReadStream(path, { highWaterMark: 1 << 20, ...(bytes === undefined ? {} : { end: bytes - 1 }) })) hash.update(part as Buffer);
  return hash.digest('hex');
}
