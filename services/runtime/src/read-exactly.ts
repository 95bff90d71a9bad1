/** Reads of a part of a file that end with all of it, or not at all. */
import type { FileHandle } from 'node:fs/promises';

/** The file ends, at `endByte`, before what was asked for does. */
export class ShortFileError extends Error {
  override readonly name = 'ShortFileError';
  constructor(readonly endByte: number) {
    super(`the file ends at byte ${endByte}`);
  }
}

/** Rejects with ShortFileError, or the file system's error. */
export async function readExactly(file: FileHandle, offset: number, bytes: number): Promise<Buffer> {
  const data = Buffer.allocUnsafe(bytes);
  for (let done = 0; done < bytes;) {
    const { bytesRead } = await file.read(data, done, bytes - done, offset + done);
    if (bytesRead === 0) throw new ShortFileError(offset + done);
    done += bytesRead;
  }
  return data;
}
