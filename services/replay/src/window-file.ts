/**
 * Files of router windows: eight bytes that name the format, then every window (proto `RouterWindow`) behind its length, four
 * bytes little endian. A device's windows and what `engine eval --record-windows` writes are alike.
 */
import { MOST_WINDOW_ROW_BYTES } from '@moefleet/edge-agent/engine';
import { RouterWindow } from '@moefleet/proto';
import { TraceError } from './trace-error';

const WINDOW_FILE_MAGIC = Buffer.from('mfwindow');

/** Of one window: its rows and their head. */
const MOST_WINDOW_BYTES = MOST_WINDOW_ROW_BYTES + 8 * 1024 * 1024;

export function isWindowFile(bytes: Uint8Array): boolean {
  return WINDOW_FILE_MAGIC.equals(bytes.subarray(0, WINDOW_FILE_MAGIC.length));
}

/** Throws TraceError. */
export function readWindowFile(path: string, bytes: Buffer): RouterWindow[] {
  const windows: RouterWindow[] = [];
  for (let at = WINDOW_FILE_MAGIC.length; at < bytes.length;) {
    const damaged = (what: string) => new TraceError(`${path}: window ${windows.length + 1}, at byte ${at}: ${what}; the file is damaged or cut short, record it again`);
    const length = bytes.length - at < 4 ? null : bytes.readUInt32LE(at);
    if (length === null || length > MOST_WINDOW_BYTES || at + 4 + length > bytes.length) throw damaged(`says ${length ?? 'no'} bytes where ${Math.max(0, bytes.length - at - 4)} follow`);
    try {
      windows.push(RouterWindow.decode(bytes.subarray(at + 4, at + 4 + length)));
    } catch (error) {
      throw damaged((error as Error).message);
    }
    at += 4 + length;
  }
  return windows;
}

export function* formatWindows(windows: Iterable<RouterWindow>): Generator<Buffer> {
  yield WINDOW_FILE_MAGIC;
  for (const window of windows) {
    const body = RouterWindow.encode(window).finish();
    const head = Buffer.alloc(4);
    head.writeUInt32LE(body.length);
    yield head;
    yield Buffer.from(body);
  }
}
