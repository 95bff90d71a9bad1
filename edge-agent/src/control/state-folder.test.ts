import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { StateFolder, StateFolderBusyError } from './state-folder';

let path: string;
beforeEach(() => { path = join(mkdtempSync(join(tmpdir(), 'moefleet-state-')), 'state'); });
afterEach(() => rmSync(join(path, '..'), { recursive: true, force: true }));

test('a second holder is refused and told who holds it, until the first lets go', async () => {
  const first = new StateFolder(path);
  await first.start();
  const second = new StateFolder(path);
  await expect(second.start()).rejects.toThrow(StateFolderBusyError);
  await expect(second.start()).rejects.toThrow(new RegExp(`${path}.*${process.pid}.*--state-dir`));
  await second.stop();
  await expect(second.start()).rejects.toThrow(StateFolderBusyError);
  await first.stop();
  await second.start();
  await second.stop();
  expect(readdirSync(path)).toEqual([]);
});

test('the lock of a process that is gone, or whose number another has now, is stale', async () => {
  const folder = new StateFolder(path);
  await folder.start();
  await folder.stop();
  const child = spawn('true');
  await new Promise((resolve) => child.once('exit', resolve));
  for (const stale of [`${child.pid} 12345\n`, `${process.pid} 1\n`, 'garbage', '']) {
    writeFileSync(join(path, 'lock'), stale);
    const next = new StateFolder(path);
    await next.start();
    await next.stop();
  }
  expect(readdirSync(path)).toEqual([]);
});

test('the install id is made once', async () => {
  const folder = new StateFolder(path);
  await folder.start();
  const id = folder.installId();
  await folder.stop();
  expect(new StateFolder(path).installId()).toBe(id);
  writeFileSync(join(path, 'install-id'), 'nonsense');
  expect(new StateFolder(path).installId()).toMatch(/^[0-9a-f-]{36}$/);
});

test('a written file is whole and replaces the one before', async () => {
  const folder = new StateFolder(path);
  await folder.start();
  expect(folder.read('spec.json')).toBeNull();
  folder.write('spec.json', 'one');
  folder.write('spec.json', 'two');
  expect(folder.read('spec.json')).toBe('two');
  expect(readdirSync(path).sort()).toEqual(['lock', 'spec.json']);
  await folder.stop();
});
