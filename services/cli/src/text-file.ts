/** A text that a command is given by name. */
import { readFileSync } from 'node:fs';
import { UsageFailure } from './failure';

/** The whole file, which must be UTF-8. Throws UsageFailure naming the file. */
export function readTextFile(flag: string, path: string): string {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new UsageFailure(`${flag}: cannot read ${path}: ${code === 'ENOENT' ? 'no such file' : (error as Error).message}`, { cause: error });
  }
  try {
    // Kept as it is, a byte order mark included: what is scored is the file.
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new UsageFailure(`${flag}: ${path} is not UTF-8 text; convert it first, e.g. with iconv -t UTF-8`, { cause: error });
  }
}
