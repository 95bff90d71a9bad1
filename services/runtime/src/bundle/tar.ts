/**
 * The part of the ustar format (POSIX.1-1988) that bundles are made of: regular files, nothing else. The writer's bytes
 * depend on names, modes and contents alone. The reader refuses whatever it would have to interpret (links, devices,
 * extended headers), so that no archive can name a place outside the folder it is unpacked into.
 */
import { BundleError } from './manifest';

const BLOCK = 512;
/** 1980-01-01, the least that every archive format knows; the true times would differ from build to build */
const MTIME_SECONDS = 315_532_800;
const NAME_BYTES = 100;
const PREFIX_BYTES = 155;

export interface TarEntry { readonly path: string; readonly bytes: number; readonly executable: boolean; }

export function tarHeader({ path, bytes, executable }: TarEntry): Buffer {
  const header = Buffer.alloc(BLOCK);
  const [prefix, name] = splitPath(path);
  header.write(name, 0);
  header.write(octal(executable ? 0o755 : 0o644, 8), 100);
  header.write(octal(0, 8), 108);
  header.write(octal(0, 8), 116);
  header.write(octal(bytes, 12), 124);
  header.write(octal(MTIME_SECONDS, 12), 136);
  header.write('        0', 148);
  header.write('ustar\x0000', 257);
  header.write(prefix, 345);
  header.write(`${checksum(header).toString(8).padStart(6, '0')}\0 `, 148);
  return header;
}

/** What follows `bytes` of content up to the next header. */
export function tarPadding(bytes: number): Buffer {
  return Buffer.alloc((BLOCK - (bytes % BLOCK)) % BLOCK);
}

export const TAR_END = Buffer.alloc(2 * BLOCK);

/** null at the archive's end. Throws BundleError. */
function readHeader(header: Buffer): TarEntry | null {
  if (header.every((byte) => byte === 0)) return null;
  if (header.toString('latin1', 257, 262) !== 'ustar') throw new BundleError('the archive is no ustar archive');
  if (readOctal(header, 148, 8) !== checksum(header)) throw new BundleError('a header of the archive is damaged: its checksum is wrong');
  const [name, prefix] = [text(header, 0, NAME_BYTES), text(header, 345, PREFIX_BYTES)];
  const path = prefix === '' ? name : `${prefix}/${name}`;
  const type = String.fromCharCode(header[156]!);
  if (type !== '0' && type !== '\0') throw new BundleError(`${JSON.stringify(path).slice(0, 120)}: entries of type ${JSON.stringify(type)} do not belong into a bundle, only regular files`);
  return { path, bytes: readOctal(header, 124, 12), executable: (readOctal(header, 100, 8) & 0o100) !== 0 };
}

/**
 * Hands an archive out as it arrives. `onEntry` is called with each header before its content and answers where that
 * goes; it throws what it does not want. Memory: one part of the stream and one block.
 */
export async function readTar(parts: AsyncIterable<Buffer>, onEntry: (entry: TarEntry) => Promise<TarSink> | TarSink): Promise<void> {
  let pending: Buffer = Buffer.alloc(0);
  let left = 0;
  let padding = 0;
  let sink: TarSink | null = null;
  let ended = false;
  for await (const part of parts) {
    pending = pending.length === 0 ? part : Buffer.concat([pending, part]);
    for (;;) {
      if (ended) {
        if (pending.some((byte) => byte !== 0)) throw new BundleError('there is something after the archive\'s end');
        pending = Buffer.alloc(0);
        break;
      }
      if (sink) {
        const piece = pending.subarray(0, left);
        if (piece.length > 0) await sink.write(piece);
        left -= piece.length;
        pending = pending.subarray(piece.length);
        if (left > 0) break;
        await sink.end();
        sink = null;
      }
      const skip = Math.min(padding, pending.length);
      pending = pending.subarray(skip);
      padding -= skip;
      if (padding > 0 || pending.length < BLOCK) break;
      const entry = readHeader(pending.subarray(0, BLOCK));
      pending = pending.subarray(BLOCK);
      if (entry === null) {
        ended = true;
        continue;
      }
      sink = await onEntry(entry);
      left = entry.bytes;
      padding = tarPadding(entry.bytes).length;
    }
  }
  if (sink || !ended) throw new BundleError('the archive ends in the middle; fetch it again');
}

export interface TarSink { write(part: Buffer): Promise<void> | void; end(): Promise<void> | void; }

function splitPath(path: string): [prefix: string, name: string] {
  if (Buffer.byteLength(path) <= NAME_BYTES) return ['', path];
  for (let at = path.indexOf('/'); at !== -1; at = path.indexOf('/', at + 1)) {
    if (path.length - at - 1 <= NAME_BYTES && at <= PREFIX_BYTES) return [path.slice(0, at), path.slice(at + 1)];
  }
  throw new BundleError(`${path}: too long for an archive`);
}

function checksum(header: Buffer): number {
  let sum = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += header[i]!;
  return sum;
}

function octal(value: number, width: number): string {
  return `${value.toString(8).padStart(width - 1, '0')}\0`;
}

function readOctal(header: Buffer, at: number, width: number): number {
  const digits = text(header, at, width).trim();
  if (!/^[0-7]{1,11}$/.test(digits)) throw new BundleError(`a header of the archive is damaged: ${JSON.stringify(digits)} is no octal number`);
  return parseInt(digits, 8);
}

function text(header: Buffer, at: number, width: number): string {
  const field = header.toString('latin1', at, at + width);
  const end = field.indexOf('\0');
  return end === -1 ? field : field.slice(0, end);
}
