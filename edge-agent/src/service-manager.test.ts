import { createLogger } from '@moefleet/runtime';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from '../../test/harness/ports';
import { ServiceManager } from './service-manager';

const log = createLogger('test', 'silent');
let folder: string;
let said: string;
let program: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-notify-'));
  [said, program] = [join(folder, 'said'), join(folder, 'notify')];
  writeFileSync(program, `#!/bin/sh\necho "$NOTIFY_SOCKET $1" >>${said}\n`);
  chmodSync(program, 0o755);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test('nobody is told where nobody asks', () => {
  expect(ServiceManager.of({}, log)).toBeNull();
});

test('says that it is ready, that it lives, and that it stops', async () => {
  const manager = ServiceManager.of({ NOTIFY_SOCKET: '@systemd', WATCHDOG_USEC: '30000', WATCHDOG_PID: String(process.pid) }, log, program)!;
  await manager.start();
  await until('the watchdog is fed', () => readFileSync(said, 'utf8').includes('WATCHDOG=1'), 5_000, 5);
  await manager.stop();
  const lines = readFileSync(said, 'utf8').trim().split('\n');
  expect(lines[0]).toBe('@systemd READY=1');
  expect(lines).toContain('@systemd STOPPING=1');
});

test('a watchdog of another process is not fed', async () => {
  const others = ServiceManager.of({ NOTIFY_SOCKET: 'others', WATCHDOG_USEC: '3000', WATCHDOG_PID: '1' }, log, program)!;
  const mine = ServiceManager.of({ NOTIFY_SOCKET: 'mine', WATCHDOG_USEC: '30000' }, log, program)!;
  await others.start();
  await mine.start();
  await until('the watchdog of this one is fed', () => readFileSync(said, 'utf8').includes('mine WATCHDOG=1'), 5_000, 5);
  await Promise.all([mine.stop(), others.stop()]);
  expect(readFileSync(said, 'utf8')).not.toContain('others WATCHDOG=1');
});

test('one that cannot be told does not stop the agent', async () => {
  const manager = ServiceManager.of({ NOTIFY_SOCKET: '/run/none' }, log, join(folder, 'missing'))!;
  await expect(manager.start()).resolves.toBeUndefined();
  await expect(manager.stop()).resolves.toBeUndefined();
});
