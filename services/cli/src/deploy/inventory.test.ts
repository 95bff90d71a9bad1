import { UsageFailure } from '../failure';
import { destinationText, parseDestination, refuseTwins } from './host-target';
import { readInventory } from './inventory';

const INI = `
# boards
gateway ansible_host=10.0.0.1 ansible_port=2222
[jetson]
orin-[01:03]   moefleet_cache=2GiB
[jetson:vars]
ansible_user=nvidia
moefleet_labels="class=jetson,site=a"
[pi]
pi5 ansible_user=pi
[boards:children]
jetson
pi
[boards:vars]
ansible_user=root
moefleet_cache=1GiB
`;

test('reads destinations as ssh writes them', () => {
  expect(parseDestination('pi@board')).toEqual({ id: 'board', host: 'board', user: 'pi' });
  expect(parseDestination('board:2222')).toEqual({ id: 'board', host: 'board', port: 2222 });
  expect(parseDestination('root@[fe80::1]:22')).toEqual({ id: 'fe80--1', host: 'fe80::1', user: 'root', port: 22 });
  expect(parseDestination('10.0.0.7').id).toBe('10.0.0.7');
  expect(destinationText(parseDestination('root@[fe80::1]:22'))).toBe('root@[fe80::1]:22');
});

test.each(['-oProxyCommand=evil', 'user@-oProxyCommand=x', 'a b', 'x@y@z', 'host:99999', '', '@host', 'host;reboot', '$(id)'])('refuses "%s"', (text) => {
  expect(() => parseDestination(text)).toThrow(UsageFailure);
});

test('a plain file has one destination a line', () => {
  expect(readInventory('boards.txt', 'pi@a\n# gone: pi@b\npi@c:2222  # attic\n').map(destinationText)).toEqual(['pi@a', 'pi@c:2222']);
});

test('an INI inventory: ranges, groups of groups, and the nearest value wins', () => {
  const targets = readInventory('hosts.ini', INI);
  expect(targets.map(({ id }) => id).sort()).toEqual(['gateway', 'orin-01', 'orin-02', 'orin-03', 'pi5']);
  expect(targets.find(({ id }) => id === 'orin-02')).toEqual({ id: 'orin-02', host: 'orin-02', user: 'nvidia', labels: 'class=jetson,site=a', cache: '2GiB' });
  expect(targets.find(({ id }) => id === 'pi5')).toMatchObject({ user: 'pi', cache: '1GiB' });
  expect(targets.find(({ id }) => id === 'gateway')).toEqual({ id: 'gateway', host: '10.0.0.1', port: 2222 });
  expect(readInventory('hosts.ini', INI, ['jetson', 'pi5']).map(({ id }) => id).sort()).toEqual(['orin-01', 'orin-02', 'orin-03', 'pi5']);
  expect(() => readInventory('hosts.ini', INI, ['nano'])).toThrow(/no group or host "nano".*jetson, pi, boards/);
});

test('a YAML inventory says the same', () => {
  const yaml = `
all:
  vars: { ansible_user: root }
  hosts:
    gateway: { ansible_host: 10.0.0.1, ansible_port: 2222 }
  children:
    jetson:
      hosts: { 'orin-[01:02]': {} }
      vars: { ansible_user: nvidia, moefleet_id_prefix: [ignored] }
    pi: { hosts: { pi5: { moefleet_id: attic } } }
`;
  const targets = readInventory('hosts.yml', yaml);
  expect(targets.map(destinationText)).toEqual(expect.arrayContaining(['nvidia@orin-01', 'nvidia@orin-02', 'root@pi5', 'root@10.0.0.1:2222']));
  expect(targets.find(({ host }) => host === 'pi5')!.id).toBe('attic');
  expect(readInventory('hosts.yaml', yaml, ['all'])).toHaveLength(4);
});

test.each([
  ['hosts.ini', '[jetson:hostvars]\n', /hosts\.ini:1: \[jetson:hostvars\]/],
  ['hosts.ini', 'board 10.0.0.1\n', /hosts\.ini:1: "10\.0\.0\.1": expected name=value/],
  ['hosts.ini', 'board ansible_port=ssh\n', /port NaN of board/],
  ['hosts.ini', 'board ansible_host=-oProxyCommand=x\n', /host "-oProxyCommand=x"/],
  ['hosts.ini', 'b[9:1]\n', /a range goes upwards/],
  ['hosts.ini', '[a:children]\nb\n[b:children]\na\n', /is a child of itself/],
  ['hosts.ini', '# nothing\n', /names no hosts/],
  ['hosts.yml', 'all: [a, b]\n', /group all: expected a mapping/],
  ['hosts.yml', 'all: {hosts: {a: {}\n', /hosts\.yml is no YAML/],
  ['hosts.yml', 'all: {host: {a: {}}}\n', /group all has "host"/],
])('%s with %j: says what is wrong and where', (file, text, message) => {
  expect(() => readInventory(file, text)).toThrow(message);
});

test('an id or a host that is named twice is refused', () => {
  expect(() => refuseTwins([parseDestination('pi@a'), parseDestination('root@a')])).toThrow(/id a is named twice/);
  expect(() => refuseTwins([{ id: 'x', host: 'h' }, { id: 'y', host: 'h' }])).toThrow(/host h is named twice/);
  expect(() => refuseTwins([{ id: 'x', host: 'h', port: 1 }, { id: 'y', host: 'h', port: 2 }])).not.toThrow();
});
