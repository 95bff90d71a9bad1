import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { RouterWindow, type WindowChunk } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import type { Upload } from './stream-outbox';
import { WindowSpool } from './window-spool';
import { WindowUpload } from './window-upload';

const log = createLogger('test', 'silent');
const windowOf = (windowId: string, bytes = 100): RouterWindow => RouterWindow.fromPartial({ windowId, tokens: 1, data: Buffer.alloc(bytes, windowId) });
const sizeOf = (window: RouterWindow) => RouterWindow.encode(window).finish().length;

let folder: string;
let spool: WindowSpool;
let upload: WindowUpload;
let posted: Upload[];
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-windows-'));
  spool = new WindowSpool(folder, 1000, log);
  await spool.start();
  posted = [];
  upload = new WindowUpload({ spool, post: (body) => posted.push(body), log });
});
afterEach(async () => {
  upload.offline();
  await spool.stop();
  rmSync(folder, { recursive: true });
});

const latest = () => posted.at(-1)!.value as WindowChunk;
const parts = async (count: number) => until(`${count} parts`, () => posted.length >= count, 5000, 2);
const acknowledge = (fields: Partial<Parameters<WindowUpload['acknowledged']>[0]> = {}) => {
  const { windowId, offset, data } = latest();
  upload.acknowledged({ windowId, receivedBytes: offset + data.length, stored: false, refused: '', retryAfterMs: 0, ...fields });
};

test('sends part after part, each when the one before was acknowledged, and forgets what was stored', async () => {
  await spool.add(windowOf('one', 150));
  await spool.add(windowOf('two', 10));
  upload.online(100);
  await parts(1);
  expect(posted).toHaveLength(1);
  acknowledge();
  await parts(2);
  const body = Buffer.concat(posted.map(({ value }) => (value as WindowChunk).data));
  expect(RouterWindow.decode(body)).toEqual(windowOf('one', 150));
  expect(spool.windows).toBe(2);
  acknowledge({ stored: true });
  await parts(3);
  expect(latest()).toMatchObject({ windowId: 'two', offset: 0, totalBytes: sizeOf(windowOf('two', 10)) });
  acknowledge({ stored: true });
  await until('the spool is empty', () => spool.windows === 0 && readdirSync(folder).length === 0, 5000, 2);
  expect(upload.counts).toEqual({ sent: 2, refused: 0 });
});

test('a stream that ends costs the parts, not the window', async () => {
  await spool.add(windowOf('one', 150));
  upload.online(100);
  await parts(1);
  upload.offline();
  upload.acknowledged({ windowId: 'one', receivedBytes: 100, stored: false, refused: '', retryAfterMs: 0 });
  expect(posted).toHaveLength(1);
  upload.online(100);
  await parts(2);
  expect(latest()).toMatchObject({ windowId: 'one', offset: 0 });
});

test('comes back later where it is asked to, and gives up what is refused', async () => {
  await spool.add(windowOf('one'));
  upload.online(1000);
  await parts(1);
  acknowledge({ receivedBytes: 0, retryAfterMs: 5 });
  await parts(2);
  expect(latest()).toMatchObject({ windowId: 'one', offset: 0 });
  acknowledge({ refused: 'damaged' });
  await until('it is gone', () => spool.windows === 0, 5000, 2);
  expect(upload.counts).toEqual({ sent: 0, refused: 1 });
});

test('a coordinator of an earlier release gets windows whole', async () => {
  await spool.add(windowOf('one'));
  upload.online(undefined);
  await parts(1);
  expect(posted[0]).toMatchObject({ $case: 'routerWindow', value: { windowId: 'one' } });
  await until('it is gone', () => spool.windows === 0, 5000, 2);
});

test('the spool survives a restart, holds its bound, and loses the oldest first', async () => {
  for (const id of ['a', 'b', 'c', 'd']) await spool.add(windowOf(id, 300));
  expect([spool.windows, spool.dropped]).toEqual([3, 1]);
  writeFileSync(join(folder, '000000000009.window.new'), 'half');
  const again = new WindowSpool(folder, 1000, log);
  await again.start();
  expect((await again.oldest())!.window.windowId).toBe('b');
  await again.add(windowOf('e', 300));
  expect((await again.oldest())!.window.windowId).toBe('c');
  expect(readdirSync(folder)).toHaveLength(3);
});

test('a window that the disk refuses leaves nothing behind', async () => {
  mkdirSync(join(folder, '000000000001.window', 'in the way'), { recursive: true });
  await expect(spool.add(windowOf('a'))).rejects.toThrow();
  expect(readdirSync(folder)).toEqual(['000000000001.window']);
  await spool.add(windowOf('b'));
  expect((await spool.oldest())!.window.windowId).toBe('b');
});

test('a file that is damaged is dropped and counted, and the next is sent', async () => {
  await spool.add(windowOf('a'));
  await spool.add(windowOf('b'));
  writeFileSync(join(folder, readdirSync(folder).sort()[0]!), Buffer.alloc(50, 0xff));
  expect((await spool.oldest())!.window.windowId).toBe('b');
  expect(spool.dropped).toBe(1);
  await spool.clear();
  expect([spool.windows, readdirSync(folder).length]).toEqual([0, 0]);
});
