import { mkdtempSync, rmSync, writeFileSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { groupAvailable, groupPressure, parseMemoryGroup, readGroup } from './cgroup-memory';

const V1_MOUNTS = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`;
const V2_MOUNTS = '30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n';

test('finds the memory controller of version 1, also beside an unused version 2', () => {
  expect(parseMemoryGroup('8:pids:/\n4:memory:/a/b\n0::/\n', V1_MOUNTS)).toEqual({ version: 1, folders: ['/sys/fs/cgroup/memory/a/b', '/sys/fs/cgroup/memory/a', '/sys/fs/cgroup/memory'] });
});

test('finds the one hierarchy of version 2', () => {
  expect(parseMemoryGroup('0::/system.slice/agent.service\n', V2_MOUNTS)).toEqual({
    version: 2, folders: ['/sys/fs/cgroup/system.slice/agent.service', '/sys/fs/cgroup/system.slice', '/sys/fs/cgroup'],
  });
});

test('in a container the mount is the group, whatever path the host knows it by', () => {
  const mounts = '35 31 0:32 /docker/f00 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n';
  expect(parseMemoryGroup('4:memory:/docker/f00\n', mounts)?.folders).toEqual(['/sys/fs/cgroup/memory']);
  expect(parseMemoryGroup('4:memory:/docker/f00/inner\n', mounts)?.folders).toEqual(['/sys/fs/cgroup/memory/inner', '/sys/fs/cgroup/memory']);
  expect(parseMemoryGroup('4:memory:/elsewhere\n', mounts)?.folders).toEqual(['/sys/fs/cgroup/memory']);
});

test('there is none where nothing is mounted, or the path leads out', () => {
  expect(parseMemoryGroup('', '')).toBeNull();
  expect(parseMemoryGroup('0::/a\n', '')).toBeNull();
  expect(parseMemoryGroup('0::/../a\n', V2_MOUNTS)).toBeNull();
});

test('what is left is the limit without what the kernel cannot drop', () => {
  expect(groupAvailable('1000\n', '700\n', 'anon 300\ninactive_file 250\nactive_file 100\n')).toBe(650);
  expect(groupAvailable('1000', '700', 'inactive_file 1\nactive_file 1\ntotal_inactive_file 250\ntotal_active_file 100\n')).toBe(650);
  expect(groupAvailable('1000', '1200', '')).toBe(0);
  expect(groupAvailable('max\n', '700', '')).toBeNull();
  expect(groupAvailable('9223372036854771712\n', '700', '')).toBeNull();
});

describe('in a tree of groups', () => {
  let root: string;
  beforeEach(() => { root = mkdtempSync(join(tmpdir(), 'moefleet-cgroup-')); mkdirSync(join(root, 'a')); });
  afterEach(() => rmSync(root, { recursive: true }));
  const write = (folder: string, files: Record<string, string>) => Object.entries(files).forEach(([name, text]) => writeFileSync(join(root, folder, name), text));

  test('the tightest level counts', () => {
    const group = { version: 2 as const, folders: [join(root, 'a'), root, join(root, 'gone')] };
    expect(readGroup(group)).toBeNull();
    write('a', { 'memory.max': 'max\n', 'memory.current': '500\n' });
    write('.', { 'memory.max': '1000\n', 'memory.current': '900\n', 'memory.stat': 'inactive_file 50\n' });
    expect(readGroup(group)).toEqual({ availableBytes: 150, limitBytes: 1000 });
    write('a', { 'memory.max': '600\n' });
    expect(readGroup(group)).toEqual({ availableBytes: 100, limitBytes: 600 });
    expect(readGroup(null)).toBeNull();
  });

  test('only version 2 tells of stalls', () => {
    write('a', { 'memory.pressure': 'some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n' });
    expect(groupPressure({ version: 2, folders: [join(root, 'a')] })).toContain('total=5');
    expect(groupPressure({ version: 1, folders: [join(root, 'a')] })).toBeNull();
    expect(groupPressure(null)).toBeNull();
  });
});
