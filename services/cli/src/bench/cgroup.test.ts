import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Cgroups, findCgroups, type Limits } from './cgroup';

const LIMITS: Limits = { memoryBytes: 1000, read: { device: '254:0', bytesPerSecond: 700e6 } };

let root: string;
beforeEach(() => { root = mkdtempSync(join(tmpdir(), 'moefleet-cgroup-')); });
afterEach(() => rmSync(root, { recursive: true }));

const read = (...path: string[]) => readFileSync(join(root, ...path), 'utf8');
function found(limits = LIMITS): Cgroups {
  const result = findCgroups(limits, root);
  if ('missing' in result) throw new Error(result.missing);
  return result.cgroups;
}

test('version 1: a group per controller, and only of those that limit something', () => {
  mkdirSync(join(root, 'memory'));
  mkdirSync(join(root, 'blkio'));
  const group = found().make('one', LIMITS);
  expect(found().version).toBe('v1');
  expect(read('memory', 'one', 'memory.limit_in_bytes')).toBe('1000');
  expect(read('blkio', 'one', 'blkio.throttle.read_bps_device')).toBe('254:0 700000000');
  expect(group.peakBytes()).toBeNull();
  writeFileSync(join(root, 'memory', 'one', 'memory.max_usage_in_bytes'), '4096\n');
  writeFileSync(join(root, 'memory', 'one', 'memory.oom_control'), 'oom_kill_disable 0\nunder_oom 0\noom_kill 2\n');
  expect([group.peakBytes(), group.outOfMemoryKills()]).toEqual([4096, 2]);
  const diskAlone = found().make('two', { ...LIMITS, memoryBytes: null });
  expect(existsSync(join(root, 'memory', 'two'))).toBe(false);
  expect([diskAlone.peakBytes(), diskAlone.outOfMemoryKills()]).toEqual([null, null]);
});

test('version 2: one group with both limits, its controllers passed on by the root', () => {
  writeFileSync(join(root, 'cgroup.controllers'), 'cpuset cpu io memory pids\n');
  const group = found().make('one', LIMITS);
  expect(found().version).toBe('v2');
  expect(read('cgroup.subtree_control')).toBe('+memory +io');
  expect(read('one', 'memory.max')).toBe('1000');
  expect(read('one', 'io.max')).toBe('254:0 rbps=700000000');
  writeFileSync(join(root, 'one', 'memory.peak'), '77\n');
  writeFileSync(join(root, 'one', 'memory.events'), 'low 0\noom 1\noom_kill 1\n');
  expect([group.peakBytes(), group.outOfMemoryKills()]).toEqual([77, 1]);
});

test('says what is missing', () => {
  expect(findCgroups(LIMITS, root)).toEqual({ missing: expect.stringContaining('no memory controller') as string });
  mkdirSync(join(root, 'memory'));
  expect(findCgroups(LIMITS, root)).toEqual({ missing: expect.stringContaining('no blkio controller') as string });
  expect(findCgroups({ ...LIMITS, read: null }, root)).toHaveProperty('cgroups');
  writeFileSync(join(root, 'cgroup.controllers'), 'cpu memory\n');
  expect(findCgroups(LIMITS, root)).toEqual({ missing: expect.stringContaining('does not offer io') as string });
});

test('a program starts inside its groups, with its arguments as they were', () => {
  mkdirSync(join(root, 'memory'));
  mkdirSync(join(root, 'blkio'));
  const { launcher } = found().make('one', LIMITS);
  const printed = execFileSync(launcher.command, [...launcher.args, process.execPath, '-e', 'console.log(process.pid, process.argv[1])', '--', 'a  b'], { encoding: 'utf8' });
  const [pid, argument] = [printed.split(' ')[0]!, printed.trimEnd().slice(printed.indexOf(' ') + 1)];
  expect(argument).toBe('a  b');
  expect([read('memory', 'one', 'cgroup.procs').trim(), read('blkio', 'one', 'cgroup.procs').trim()]).toEqual([pid, pid]);
});

test('a program that cannot enter does not start', () => {
  mkdirSync(join(root, 'memory'));
  mkdirSync(join(root, 'blkio'));
  const group = found().make('one', LIMITS);
  mkdirSync(join(root, 'memory', 'one', 'cgroup.procs'));
  const { command, args } = group.launcher;
  expect(() => execFileSync(command, [...args, process.execPath, '-e', ''], { stdio: 'ignore' })).toThrow(expect.objectContaining({ status: 97 }));
});
