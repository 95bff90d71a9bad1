/** Files that a command reads or writes by name. */
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { Failure, UsageFailure } from './failure';

/** Throws UsageFailure naming the file. */
export function readFileBytes(flag: string, path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new UsageFailure(`${flag}: cannot read ${path}: ${code === 'ENOENT' ? 'no such file' : (error as Error).message}`, { cause: error });
  }
}

/** The whole file, which must be UTF-8. Throws UsageFailure naming the file. */
export function readTextFile(flag: string, path: string): string {
  const bytes = readFileBytes(flag, path);
  try {
    // Kept as it is, a byte order mark included: what is scored is the file.
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new UsageFailure(`${flag}: ${path} is not UTF-8 text; convert it first, e.g. with iconv -t UTF-8`, { cause: error });
  }
}

/** Before long work whose outcome would find no place. Throws UsageFailure naming the file. */
export function refuseExisting(flag: string, path: string): void {
  if (existsSync(path)) throw new UsageFailure(`${flag}: ${path} exists; remove it or name another file`);
}

/** Throws Failure naming the file; what was written by then stays. */
export function writeNewFile(flag: string, path: string, parts: Iterable<string | Buffer>, mode = 0o666): void {
  writing(flag, path, () => {
    const file = openSync(path, 'wx', mode);
    try {
      for (const part of parts) writeFileSync(file, part);
    } finally {
      closeSync(file);
    }
  });
}

/** In place of one that is there. Throws Failure naming the file. */
export function writeFileOver(flag: string, path: string, text: string): void {
  writing(flag, path, () => writeFileSync(path, text));
}

function writing(flag: string, path: string, write: () => void): void {
  try {
    write();
  } catch (error) {
    throw new Failure(`${flag}: cannot write ${path}: ${(error as Error).message}`, undefined, { cause: error });
  }
}
