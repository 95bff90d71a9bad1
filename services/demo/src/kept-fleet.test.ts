import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { rememberFleet, stopKeptFleet } from './kept-fleet';

let home: string;
let child: ChildProcess;
const stateHome = process.env['XDG_STATE_HOME'];
const recordPath = () => join(home, 'moefleet', 'demo.json');

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'moefleet-kept-'));
  process.env['XDG_STATE_HOME'] = home;
  child = spawn('sleep', ['60']);
});
afterEach(() => {
  child.kill('SIGKILL');
  rmSync(home, { recursive: true, force: true });
  if (stateHome === undefined) delete process.env['XDG_STATE_HOME'];
  else process.env['XDG_STATE_HOME'] = stateHome;
});

test('stops what was remembered, once', async () => {
  rememberFleet(join(home, 'fleet'), [child.pid!]);
  expect(await stopKeptFleet(true)).toBe(0);
  expect(child.signalCode ?? await new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)))).toBe('SIGTERM');
  expect(await stopKeptFleet(true)).toBe(0);
});

test('leaves a process alone that was given the pid since', async () => {
  rememberFleet(join(home, 'fleet'), [child.pid!]);
  const record = JSON.parse(readFileSync(recordPath(), 'utf8')) as { processes: { startTicks: string }[] };
  record.processes[0]!.startTicks = '1';
  writeFileSync(recordPath(), JSON.stringify(record));
  expect(await stopKeptFleet(true)).toBe(0);
  expect(child).toMatchObject({ exitCode: null, signalCode: null });
  process.kill(child.pid!, 0);
});

test.each(['{"fol', '{}', 'null', '[]'])('is not stuck with the damaged record %j', async (record) => {
  mkdirSync(join(home, 'moefleet'));
  writeFileSync(recordPath(), record);
  expect(await stopKeptFleet(true)).toBe(1);
  expect(await stopKeptFleet(true)).toBe(0);
});
