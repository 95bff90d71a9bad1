/** `moefleet deploy ssh` and `undeploy ssh` against real sshds in namespaces of their own, with a real coordinator, the real bundle and the real engine. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { initFleet } from '../../coordinator/src/identity/init-fleet';
import { CLI_PATH, LocalFleet } from '../../services/demo/src/local-fleet';
import { buildBundle } from '../harness/bundle';
import { type DeviceHost, type DeviceLan, deviceLanOrSkip, systemdOrSkip } from '../harness/device-hosts';
import { MODEL, REPO } from '../harness/paths';
import { freePort, until } from '../harness/ports';

/** Up to eight engines, copies and unpackings share this machine's cores. */
jest.setTimeout(300_000);

const BOARDS = ['board-1', 'board-2', 'board-3', 'board-4', 'board-5'];
/** Settings that keep five engines on two cores apart. */
const LIGHT = ['--set', 'MOEFLEET_THREADS=1', '--set', 'MOEFLEET_MEMORY_PRESSURE=off', '--cache', '4MiB'];

interface HostJson {
  id: string; outcome: string; steps: string[]; seconds: Record<string, number>; failure: { message: string; remedy: string } | null; logFile: string;
  facts: { arch: string; scope: string; directIo: boolean | null; systemd: number | null } | null;
}

const lan: DeviceLan | null = deviceLanOrSkip();
const onDevices = lan === null ? test.skip : test;
let folder: string;
let fleet: LocalFleet;
let gateway: string;
let bundles: string;
const hosts = new Map<string, DeviceHost>();

beforeAll(async () => {
  if (lan === null) return;
  folder = mkdtempSync(join(tmpdir(), 'moefleet-deploy-'));
  await initFleet(join(folder, 'fleet'), 'fleet', [], Date.now());
  bundles = join(folder, 'bundles');
  execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', join(folder, 'fleet')]);
  await buildBundle(['--arch', process.arch, '--out', bundles, '--level', '1', '--key', join(folder, 'fleet', 'bundle-key.pem')]);
  fleet = new LocalFleet({ folder, keep: false, logLevel: 'info' });
  await fleet.startRedis();
  gateway = `${lan.address}:${await freePort()}`;
  await fleet.startCoordinator(['--tls-dir', join(folder, 'fleet'), '--gateway', gateway, '--admin-token-file', join(folder, 'admin.token')]);
  for (const name of BOARDS) hosts.set(name, await lan.add({ name, without: name === 'board-5' ? ['zstd'] : [] }));
  // The first bundle of a clone takes a build of the addon.
}, 600_000);

afterAll(async () => {
  if (lan === null) return;
  await lan.close();
  await fleet?.stop();
  rmSync(folder, { recursive: true, force: true });
});

function operatorEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, HOME: folder, MOEFLEET_OPERATOR: fleet.operator, MOEFLEET_CA: join(folder, 'fleet', 'ca.pem'), MOEFLEET_TOKEN_FILE: join(folder, 'admin.token') };
}

interface Ran { code: number | null; stdout: string; stderr: string; }

/** The command line as an operator runs it. */
function moefleet(...args: string[]): Promise<Ran> {
  const child = spawn(process.execPath, [CLI_PATH, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: operatorEnvironment() });
  const ran: Ran = { code: null, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => { ran.stdout += text; });
  child.stderr.setEncoding('utf8').on('data', (text: string) => { ran.stderr += text; });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ ...ran, code }));
  });
}

/** A file of the hosts, as an operator keeps one. */
function inventory(...names: string[]): string {
  const file = join(folder, `inventory-${names.join('-')}.ini`);
  writeFileSync(file, `[boards]\n${names.map((name) => `${name} ansible_host=${hosts.get(name)!.address}`).join('\n')}\n[boards:vars]\nansible_user=root\n`);
  return file;
}

async function deploy(names: readonly string[], ...more: string[]): Promise<{ code: number | null; hosts: HostJson[]; stderr: string }> {
  const { code, stdout, stderr } = await moefleet('deploy', 'ssh', '--inventory', inventory(...names), '--ssh-config', lan!.sshConfig, '--bundle', bundles, '--model', MODEL, '--coordinator', gateway, ...LIGHT, ...more, '--json');
  if (stdout === '') throw new Error(`no answer, exit ${code}: ${stderr}`);
  return { code, hosts: (JSON.parse(stdout) as { hosts: HostJson[] }).hosts, stderr };
}

async function undeploy(names: readonly string[], ...more: string[]): Promise<{ code: number | null; hosts: { id: string; removed: boolean; released: boolean; failure: unknown }[] }> {
  const { code, stdout, stderr } = await moefleet('undeploy', 'ssh', '--inventory', inventory(...names), '--ssh-config', lan!.sshConfig, ...more, '--json');
  if (stdout === '') throw new Error(`no answer, exit ${code}: ${stderr}`);
  return { code, ...(JSON.parse(stdout) as { hosts: { id: string; removed: boolean; released: boolean; failure: unknown }[] }) };
}

async function devices(): Promise<{ id: string; online: boolean; labels: Record<string, string> }[]> {
  return (JSON.parse((await moefleet('devices', '--json')).stdout) as { devices: { id: string; online: boolean; labels: Record<string, string> }[] }).devices;
}

/** Every private part that there is, against every byte of a support bundle. */
async function nothingSecretIn(name: string): Promise<void> {
  const out = join(folder, 'support.tar.gz');
  const coordinatorLog = join(folder, 'logs', readdirSync(join(folder, 'logs')).find((file) => file.startsWith('coordinator'))!);
  const host = hosts.get(name)!;
  const token = readFileSync(join(folder, 'admin.token'), 'utf8').trim();
  const enrolment = (JSON.parse((await moefleet('token', 'create', '--json')).stdout) as { secret: string }).secret;
  // As a program that is not as careful might have written them.
  const careless = join(folder, 'careless.log');
  const key = readFileSync(join(folder, 'fleet', 'ca-key.pem'), 'utf8');
  writeFileSync(careless, `run --enrol-token ${enrolment}\n{"auth":"Bearer ${token}"}\n${key}\nMOEFLEET_REDIS_URL=redis://:hunter22@10.0.0.1:6379\n`);
  const { code, stdout } = await moefleet('support-bundle', '--out', out, '--log', coordinatorLog, '--log', careless, '--ssh', `root@${host.address}`, '--ssh-config', lan!.sshConfig, '--json');
  expect(code).toBe(0);
  expect((JSON.parse(stdout) as { files: string[] }).files).toEqual(expect.arrayContaining([
    'versions.json', 'environment.json', 'doctor.json', 'fleet/status.json', 'fleet/devices.json', 'fleet/audit.json', `devices/${host.address}/agent.log`, `devices/${host.address}/agent.env`, 'logs/careless.log',
  ]));
  const content = gunzipSync(readFileSync(out)).toString('latin1');
  const body = (pem: string) => pem.split('\n').filter((line) => line.length > 20 && !line.startsWith('-----'));
  const state = join(host.root, 'var/lib/moefleet');
  const secrets = [token, enrolment, enrolment.split('.')[1]!, 'hunter22', ...body(key), ...body(readFileSync(join(state, 'device-key.pem'), 'utf8')), ...body(readFileSync(join(state, 'device-cert.pem'), 'utf8'))];
  expect(secrets.length).toBeGreaterThan(8);
  expect(secrets.filter((secret) => content.includes(secret))).toEqual([]);
  expect(content).toContain('"id": "board-1"');
}

function differences(before: Map<string, string>, after: Map<string, string>): string[] {
  return [...new Set([...before.keys(), ...after.keys()])].filter((path) => before.get(path) !== after.get(path))
    .map((path) => `${path}: ${before.get(path) ?? 'was not there'} -> ${after.get(path) ?? 'is gone'}`);
}

onDevices('a dry run tells the plan and changes nothing', async () => {
  const board = hosts.get('board-1')!;
  const before = board.tree();
  const { code, hosts: [told] } = await deploy(['board-1'], '--dry-run');
  expect(code).toBe(0);
  expect(told).toMatchObject({ outcome: 'planned', facts: { arch: 'x86_64', scope: 'system', systemd: null }, failure: null });
  expect(told!.steps.join('\n')).toMatch(/service user moefleet[^]*copy the bundle[^]*copy the model tinymoe[^]*agent\.env[^]*launcher\.sh[^]*enrol[^]*start the agent \(launcher\)/);
  expect(differences(before, board.tree())).toEqual([]);
});

onDevices('jump hosts are gone through, as ssh\'s own configuration names them', async () => {
  const gate = hosts.get('board-2')!;
  const config = join(folder, 'ssh-config');
  // Its own loopback: nobody reaches that but through it.
  writeFileSync(config, `${readFileSync(lan!.sshConfig, 'utf8')}Host inside\n  HostName 127.0.0.1\n  ProxyJump root@${gate.address}\n`);
  const { code, stdout } = await moefleet('deploy', 'ssh', 'root@inside', '--ssh-config', config, '--bundle', bundles, '--model', MODEL, '--coordinator', gateway, '--dry-run', '--json');
  expect((JSON.parse(stdout) as { hosts: unknown[] }).hosts).toEqual([expect.objectContaining({ outcome: 'planned', failure: null, facts: expect.objectContaining({ hostname: 'board-2' }) })]);
  expect(code).toBe(0);
});

onDevices('a host whose key is not known is not trusted, and one that is interrupted says so', async () => {
  const reach = ['deploy', 'ssh', `root@${hosts.get('board-1')!.address}`, '--ssh-config', lan!.sshConfig, '--bundle', bundles, '--model', MODEL, '--coordinator', gateway];
  const unknown = await moefleet(...reach, '--ssh-option', 'StrictHostKeyChecking=yes', '--ssh-option', 'UserKnownHostsFile=/dev/null', '--json');
  expect(unknown.code).toBe(1);
  expect((JSON.parse(unknown.stdout) as { hosts: HostJson[] }).hosts[0]!.failure).toMatchObject({ message: expect.stringMatching(/host key is not known/), remedy: expect.stringMatching(/ssh-keyscan/) });

  const pem = join(folder, 'other');
  execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', pem]);
  const unsigned = await moefleet(...reach, '--bundle-key', join(pem, 'bundle-key.pub'), '--json');
  expect((JSON.parse(unsigned.stdout) as { hosts: HostJson[] }).hosts[0]!.failure).toMatchObject({ message: expect.stringMatching(/^the bundle .*sign/), remedy: expect.stringMatching(/npm run bundle/) });

  // Nothing answers there, so that it is sure to be under way.
  const child = spawn(process.execPath, [CLI_PATH, 'deploy', 'ssh', `root@${lan!.subnet}.250`, ...reach.slice(3)], { stdio: ['ignore', 'pipe', 'pipe'], env: operatorEnvironment() });
  await new Promise<void>((resolve) => child.stderr.on('data', (text: Buffer) => { if (text.includes('connect')) resolve(); }));
  child.kill('SIGINT');
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(130);
});

onDevices('five at once serve tokens and appear in the fleet; a second run changes nothing', async () => {
  const trees = new Map(BOARDS.map((name) => [name, hosts.get(name)!.tree()]));
  const one = await deploy(['board-1'], '--labels', 'site=attic');
  expect(one).toMatchObject({ code: 0, hosts: [{ outcome: 'deployed' }] });
  await undeploy(['board-1'], '--keep-record');
  expect(await devices()).toEqual([expect.objectContaining({ id: 'board-1', online: false })]);

  const first = await deploy(BOARDS, '--labels', 'site=attic');
  expect(first.hosts.map(({ id, outcome, failure }) => ({ id, outcome, failure }))).toEqual(BOARDS.map((id) => ({ id, outcome: 'deployed', failure: null })));
  expect(first.code).toBe(0);
  process.stderr.write(`deploy: one device ${JSON.stringify(one.hosts[0]!.seconds)}\ndeploy: five at once ${JSON.stringify(first.hosts.map(({ seconds }) => seconds))}\n`);
  expect(await devices()).toEqual(expect.arrayContaining(BOARDS.map((id) => expect.objectContaining({ id, online: true, labels: expect.objectContaining({ site: 'attic' }) }))));
  for (const name of BOARDS) {
    const host = hosts.get(name)!;
    expect(host.exec('sh', '-c', 'stat -c %U:%a /etc/moefleet/agent.env; ls /etc/moefleet; stat -c %U:%a /etc/moefleet/bundle-key.pub; stat -c %U /var/lib/moefleet')).toBe('moefleet:640\nagent.env\nbundle-key.pub\nroot:644\nmoefleet\n');
    const running = host.processes('node');
    expect(running).toHaveLength(2);
    for (const pid of running) expect(host.exec('stat', '-c', '%U', `/proc/${host.inside(pid)}`)).toBe('moefleet\n');
  }

  const looked = await moefleet('doctor', '--ssh', `root@${hosts.get('board-1')!.address}`, '--ssh-config', lan!.sshConfig, '--device', 'board-1', '--json');
  const { checks } = JSON.parse(looked.stdout) as { checks: { state: string; subject: string; check: string; found: string }[] };
  expect(checks.filter(({ state }) => state === 'broken')).toEqual([]);
  expect(checks).toEqual(expect.arrayContaining([
    expect.objectContaining({ state: 'ok', subject: 'board-1', check: 'connection', found: 'online' }), expect.objectContaining({ state: 'ok', check: 'agent', found: 'runs, enrolled' }),
  ]));
  await nothingSecretIn('board-1');

  const agents = BOARDS.map((name) => hosts.get(name)!.processes('node').join());
  const second = await deploy(BOARDS, '--labels', 'site=attic');
  expect(second.hosts.map(({ outcome, steps, failure }) => ({ outcome, steps, failure }))).toEqual(BOARDS.map(() => ({ outcome: 'no change', steps: [], failure: null })));
  expect(BOARDS.map((name) => hosts.get(name)!.processes('node').join())).toEqual(agents);

  const changed = await deploy(['board-2'], '--labels', 'site=cellar');
  expect(changed.hosts[0]!.steps).toEqual(['write /etc/moefleet/agent.env', 'start anew the agent (launcher)']);
  expect((await devices()).find(({ id }) => id === 'board-2')!.labels).toMatchObject({ site: 'cellar' });

  const gone = await undeploy(BOARDS);
  expect(gone.hosts.map(({ id, removed, released, failure }) => ({ id, removed, released, failure }))).toEqual(BOARDS.map((id) => ({ id, removed: true, released: true, failure: null })));
  expect(await devices()).toEqual([]);
  for (const name of BOARDS) {
    expect(differences(trees.get(name)!, hosts.get(name)!.tree())).toEqual([]);
    expect(hosts.get(name)!.processes('node')).toEqual([]);
  }
});

onDevices('each failure is named with its remedy, leaves the others alone, and a second run finishes the job', async () => {
  const full = await lan!.add({ name: 'full', smallOpt: '60m' });
  const odd = await lan!.add({ name: 'odd', arch: 'armv7l' });
  const cut = await lan!.add({ name: 'cut' });
  for (const host of [full, odd, cut]) hosts.set(host.name, host);
  const names = ['board-1', 'full', 'odd', 'cut'];
  lan!.throttle(cut, '80mbit');
  const running = deploy(names);
  await until('some of the bundle has arrived', () => {
    const incoming = join(cut.root, 'opt/moefleet/incoming');
    return readdirSync(incoming).some((name) => statSync(join(incoming, name)).size > 4 * 2 ** 20);
  });
  cut.killSshd();
  const first = await running;
  const outcome = (id: string, of = first) => of.hosts.find((host) => host.id === id)!;
  expect(first.code).toBe(1);
  expect(outcome('board-1')).toMatchObject({ outcome: 'deployed', failure: null });
  expect(outcome('full').failure).toMatchObject({ message: expect.stringMatching(/^disk: \/opt .*has [\d.]+ MiB free, needed are/), remedy: expect.stringMatching(/free [\d.]+ MiB there/) });
  expect(outcome('odd').failure).toMatchObject({ message: expect.stringMatching(/^architecture: armv7l/), remedy: expect.stringMatching(/64-bit image/) });
  expect(outcome('cut').failure).toMatchObject({ message: expect.stringMatching(/^the ssh connection ended half-way/), remedy: expect.stringMatching(/run the same command again/) });
  for (const id of ['full', 'odd', 'cut']) expect(readFileSync(outcome(id).logFile, 'utf8')).toContain('failed: ');
  expect(existsSync(join(full.root, 'var/lib/moefleet'))).toBe(false);

  lan!.unthrottle(cut);
  cut.startSshd();
  full.exec('mount', '-o', 'remount,size=2g', '/opt');
  rmSync(join(odd.root, 'local/bin/uname'));
  const second = await deploy(names);
  expect(second.hosts.map(({ id, outcome: word, failure }) => ({ id, word, failure }))).toEqual(names.map((id) => ({ id, word: id === 'board-1' ? 'no change' : 'deployed', failure: null })));
  expect(readFileSync(outcome('cut', second).logFile, 'utf8')).toMatch(/bundle: goes on at \d/);
  await until('all of them are in the fleet', async () => (await devices()).filter(({ id, online }) => online && names.includes(id)).length === names.length);
  expect((await undeploy(names)).code).toBe(0);
});

onDevices('without root everything lies below the home of who logs in, and goes again', async () => {
  const board = hosts.get('board-3')!;
  // As on a phone.
  writeFileSync(join(board.root, 'local/bin/termux-wake-lock'), '#!/bin/sh\necho awake now\n', { mode: 0o755 });
  const before = board.tree();
  const reach = ['ssh', `pi@${board.address}`, '--ssh-config', lan!.sshConfig];
  const ran = await moefleet('deploy', ...reach, '--bundle', bundles, '--model', MODEL, '--coordinator', gateway, ...LIGHT, '--set', 'MOEFLEET_API_KEY=for-this-board');
  expect(ran.stdout).toMatch(/launcher +deployed/);
  expect(ran.stdout).toMatch(/no root: the agent is supervised by a launcher/);
  expect(ran.code).toBe(0);
  expect((await devices()).find(({ id }) => id === board.address)).toMatchObject({ online: true });
  const [supervisor] = board.processes('node');
  expect(board.exec('stat', '-c', '%U', `/proc/${board.inside(supervisor!)}`)).toBe('pi\n');
  expect(board.exec('cat', '/home/pi/.moefleet/state/agent.log')).toContain('awake now\n');

  process.kill(supervisor!, 'SIGKILL');
  await until('the launcher has started it again', () => board.processes('node').some((pid) => pid !== supervisor && board.processes('node').length === 2));

  const gone = await moefleet('undeploy', ...reach);
  expect(gone.stdout).toMatch(/removed +removed/);
  expect(differences(before, board.tree())).toEqual([]);
  expect(board.processes('node')).toEqual([]);
});

(lan !== null && systemdOrSkip() ? test : test.skip)('under systemd: ready when it serves, watched, started again, and gone without a trace', async () => {
  const board = await lan!.add({ name: 'served', systemd: true });
  hosts.set('served', board);
  const before = board.tree();
  const first = await deploy(['served']);
  expect(first.hosts[0]).toMatchObject({ outcome: 'deployed', failure: null, facts: { systemd: expect.any(Number) } });
  const shown = (name: string) => board.exec('systemctl', 'show', '--value', '-p', name, 'moefleet-agent.service').trim();
  expect(['ActiveState', 'SubState', 'User', 'NoNewPrivileges', 'ProtectSystem', 'UnitFileState'].map(shown)).toEqual(['active', 'running', 'moefleet', 'yes', 'strict', 'enabled']);
  expect((await deploy(['served'])).hosts[0]).toMatchObject({ outcome: 'no change', steps: [] });

  // A supervisor that stands still is started anew: systemd hears nothing of it.
  board.exec('sh', '-c', 'mkdir -p /run/systemd/system/moefleet-agent.service.d && printf "[Service]\\nWatchdogSec=2\\n" >/run/systemd/system/moefleet-agent.service.d/test.conf && systemctl daemon-reload && systemctl restart moefleet-agent');
  const supervisors = () => board.processes('node').filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('/lib/main.js'));
  const [supervisor] = supervisors();
  await until('some heartbeats have been heard', () => Number(shown('WatchdogTimestampMonotonic')) > Number(shown('ActiveEnterTimestampMonotonic')));
  process.kill(supervisor!, 'SIGSTOP');
  await until('systemd has started another', () => shown('ActiveState') === 'active' && supervisors().length === 1 && !supervisors().includes(supervisor!), 60_000);
  expect(shown('NRestarts')).toBe('1');
  await until('it is back in the fleet', async () => (await devices()).find(({ id }) => id === 'served')?.online);
  board.exec('rm', '-r', '/run/systemd/system/moefleet-agent.service.d');

  expect((await undeploy(['served'])).hosts[0]).toMatchObject({ removed: true, released: true });
  expect(differences(before, board.tree()).filter((line) => !line.startsWith('/var/log/journal/'))).toEqual([]);
  expect(board.processes('node')).toEqual([]);
  expect(board.exec('systemctl', 'list-units', '--all', '--no-legend', 'moefleet*')).toBe('');
});
