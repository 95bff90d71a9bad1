/**
 * Devices of a test's own: namespaces for network, mounts, processes and host name, a root folder of their own over the
 * machine's /usr, and a real sshd in each, on a private bridge. Takes root; where that, or a program, is missing,
 * `deviceLanOrSkip` says so loudly and gives null.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, chownSync, cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { until } from './ports';

const NEEDED = ['ip', 'tc', 'unshare', 'nsenter', 'pivot_root', 'ssh', 'ssh-keygen'];
/** What the system's programs read of /etc. */
const ETC = ['passwd', 'group', 'shadow', 'gshadow', 'nsswitch.conf', 'ld.so.conf', 'ld.so.conf.d', 'ld.so.cache', 'login.defs', 'pam.d', 'security', 'default', 'alternatives', 'os-release', 'hosts', 'profile', 'shells', 'services', 'protocols', 'dbus-1', 'ssl'];
const SSHD = '/usr/sbin/sshd';
/** Where control groups of version 2 are, beside those of version 1 or alone. */
const GROUPS = existsSync('/sys/fs/cgroup/unified') ? '/sys/fs/cgroup/unified' : '/sys/fs/cgroup';

export interface DeviceHostOptions {
  name: string;
  /** runs systemd as its first process */
  systemd?: boolean;
  /** size of the file system at /opt, as mount takes it */
  smallOpt?: string;
  /** what `uname -m` says */
  arch?: string;
  /** programs of /usr/bin that it does not have */
  without?: string[];
}

export class DeviceHost {
  private constructor(readonly name: string, readonly address: string, readonly root: string, private readonly netns: string, private readonly group: string | null, private readonly child: ChildProcess) {}

  static async start(lan: DeviceLan, options: DeviceHostOptions, number: number): Promise<DeviceHost> {
    const { name, systemd = false, smallOpt = '', arch, without = [] } = options;
    const root = join(lan.folder, name);
    makeRoot(root, lan.publicKey, { smallOpt, arch, without });
    if (systemd) addSystemd(root);
    const group = systemd ? join(GROUPS, `${lan.bridge}-${number}`) : null;
    const netns = `${lan.bridge}n${number}`;
    const address = `${lan.subnet}.${number + 10}`;
    const link = `${lan.bridge}v${number}`;
    lan.ip('netns', 'add', netns);
    lan.ip('link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', netns);
    lan.ip('link', 'set', link, 'master', lan.bridge, 'up');
    for (const args of [['addr', 'add', `${address}/24`, 'dev', 'eth0'], ['link', 'set', 'eth0', 'up'], ['link', 'set', 'lo', 'up']]) lan.ip('-n', netns, ...args);
    const child = spawn('nsenter', [`--net=/run/netns/${netns}`, 'unshare', '--mount', '--pid', '--uts', '--ipc', '--fork', '--kill-child', 'sh', join(__dirname, 'device-host.sh'), root, name, group ?? ''], { stdio: ['ignore', 'pipe', 'pipe'] });
    const log: string[] = [];
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => log.push(text));
    const host = new DeviceHost(name, address, root, netns, group, child);
    const up = await until(`sshd of ${name} answers`, async () => (child.exitCode !== null ? 'ended' : await answers(address, 22) && 'up')).catch(() => 'silent');
    if (up === 'up') return host;
    await host.stop();
    throw new Error(`the device ${name} ${up === 'ended' ? 'ended' : 'does not answer'}:\n${log.join('')}`);
  }

  /** Runs a command in the device, as root, and gives what it says. */
  exec(...command: string[]): string {
    return execFileSync('nsenter', ['--target', String(this.init), '--mount', '--pid', '--net', '--uts', '--ipc', '--root', '--wd', '--', ...command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: '/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' } });
  }

  /** Numbers, as this machine counts, of the device's processes of this program. */
  processes(program: string): number[] {
    const own = readlinkSync(`/proc/${this.init}/ns/pid`);
    return readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).map(Number).filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/ns/pid`) === own && basename(readlinkSync(`/proc/${pid}/exe`)) === program;
      } catch {
        return false;
      }
    });
  }

  /** The number that the device itself has for a process of `processes`. */
  inside(pid: number): number {
    return Number(/^NSpid:.*\s(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);
  }

  killSshd(): void {
    for (const pid of this.processes('sshd')) process.kill(pid, 'SIGKILL');
  }

  startSshd(): void {
    this.exec(SSHD);
  }

  /** Every file and folder below the root, save what only the running system has, with what tells a change. */
  tree(): Map<string, string> {
    const seen = new Map<string, string>();
    const walk = (folder: string) => {
      for (const entry of readdirSync(join(this.root, folder), { withFileTypes: true })) {
        const path = join(folder, entry.name);
        if (['/usr', '/proc', '/sys', '/dev', '/run', '/old', '/local', '/tmp'].includes(path)) continue;
        // What useradd and userdel keep of the file as it was before they changed it.
        if (/^\/etc\/g?(passwd|group|shadow)-$/.test(path)) continue;
        const full = join(this.root, path);
        const { mode, uid, gid } = lstatSync(full);
        const content = entry.isFile() ? createHash('sha256').update(readFileSync(full)).digest('hex') : entry.isSymbolicLink() ? readlinkSync(full) : '';
        seen.set(path, `${mode.toString(8)} ${uid}:${gid} ${content}`);
        if (entry.isDirectory()) walk(path);
      }
    };
    walk('/');
    return seen;
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const ended = new Promise((resolve) => this.child.once('close', resolve));
      process.kill(this.init, 'SIGKILL');
      await ended;
    }
    execFileSync('ip', ['netns', 'del', this.netns]);
    if (this.group !== null) await until(`the control groups of ${this.name} are gone`, () => removeGroups(this.group!));
  }

  /** The device's first process, as this machine counts. */
  private get init(): number {
    // `nsenter` becomes unshare, whose only child it is.
    const children = readFileSync(`/proc/${this.child.pid}/task/${this.child.pid}/children`, 'utf8').trim().split(' ');
    return Number(children[0]);
  }
}

export class DeviceLan {
  readonly folder = mkdtempSync(join(tmpdir(), 'mf-lan-'));
  readonly bridge = `mf${process.pid % 100_000}`;
  readonly subnet: string;
  readonly keyFile = join(this.folder, 'key');
  /** as ssh -F takes it */
  readonly sshConfig = join(this.folder, 'ssh_config');
  readonly hosts: DeviceHost[] = [];

  constructor() {
    const taken = execFileSync('ip', ['-4', '-o', 'addr'], { encoding: 'utf8' });
    const third = Array.from({ length: 250 }, (_, i) => (process.pid + i) % 250).find((one) => !taken.includes(`10.213.${one}.`));
    this.subnet = `10.213.${third}`;
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', this.keyFile]);
    writeFileSync(this.sshConfig, `IdentityFile ${this.keyFile}\nIdentitiesOnly yes\nUserKnownHostsFile ${join(this.folder, 'known_hosts')}\nStrictHostKeyChecking accept-new\n`, { mode: 0o600 });
    this.ip('link', 'add', this.bridge, 'type', 'bridge');
    this.ip('addr', 'add', `${this.address}/24`, 'dev', this.bridge);
    this.ip('link', 'set', this.bridge, 'up');
    try {
      execFileSync('tc', ['qdisc', 'add', 'dev', this.bridge, 'root', 'tbf', 'rate', '1gbit', 'burst', '64kb', 'latency', '400ms'], { stdio: 'pipe' });
      execFileSync('tc', ['qdisc', 'del', 'dev', this.bridge, 'root'], { stdio: 'pipe' });
    } catch (cause) {
      this.ip('link', 'del', this.bridge);
      throw new Error(`this kernel cannot slow a link down: ${(cause as Error).message}`, { cause });
    }
  }

  /** This machine's on the bridge. */
  get address(): string {
    return `${this.subnet}.1`;
  }

  get publicKey(): string {
    return readFileSync(`${this.keyFile}.pub`, 'utf8');
  }

  async add(options: DeviceHostOptions): Promise<DeviceHost> {
    const number = this.hosts.length;
    const host = await DeviceHost.start(this, options, number);
    this.hosts.push(host);
    return host;
  }

  /** How fast bytes reach the device, as tc writes rates. */
  throttle(host: DeviceHost, rate: string): void {
    execFileSync('tc', ['qdisc', 'replace', 'dev', this.linkOf(host), 'root', 'tbf', 'rate', rate, 'burst', '64kb', 'latency', '400ms']);
  }

  unthrottle(host: DeviceHost): void {
    execFileSync('tc', ['qdisc', 'del', 'dev', this.linkOf(host), 'root']);
  }

  ip(...args: string[]): void {
    execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  }

  async close(): Promise<void> {
    for (const host of this.hosts) await host.stop();
    this.ip('link', 'del', this.bridge);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private linkOf(host: DeviceHost): string {
    return `${this.bridge}v${this.hosts.indexOf(host)}`;
  }
}

/** Whether a device can run systemd as its first process here; says so loudly where it cannot. */
export function systemdOrSkip(): boolean {
  const why = !existsSync('/lib/systemd/systemd') ? 'systemd is not installed (apt-get install systemd)'
    : !existsSync(join(GROUPS, 'cgroup.procs')) ? 'there are no control groups of version 2' : writable(GROUPS) ? null : `${GROUPS} cannot be written`;
  if (why !== null) process.stderr.write(`\nNO DEVICE CAN RUN SYSTEMD (${why}): the test of the service under systemd is SKIPPED\n`);
  return why === null;
}

function writable(folder: string): boolean {
  try {
    const made = join(folder, `mf-try-${process.pid}`);
    mkdirSync(made);
    rmdirSync(made);
    return true;
  } catch {
    return false;
  }
}

export function deviceLanOrSkip(): DeviceLan | null {
  try {
    if (process.getuid?.() !== 0) throw new Error('this is not root');
    const missing = [...NEEDED.filter((name) => !onPath(name)), ...(existsSync(SSHD) ? [] : ['sshd (apt-get install openssh-server)'])];
    if (missing.length > 0) throw new Error(`missing: ${missing.join(', ')}`);
    execFileSync('unshare', ['--mount', '--pid', '--uts', '--ipc', '--net', '--fork', 'true'], { stdio: 'pipe' });
    return new DeviceLan();
  } catch (error) {
    process.stderr.write(`\nNO DEVICES CAN BE MADE (${(error as Error).message}): tests of deployment over ssh are SKIPPED; run as root where namespaces are allowed\n`);
    return null;
  }
}

/** Units of the device's own: sshd, and none that would touch the machine below it. */
function addSystemd(root: string): void {
  const units = join(root, 'etc/systemd/system');
  mkdirSync(units, { recursive: true });
  writeFileSync(join(units, 'device.target'), '[Unit]\nRequires=basic.target\nWants=device-sshd.service\nAfter=basic.target\nAllowIsolate=yes\n');
  writeFileSync(join(units, 'device-sshd.service'), '[Unit]\nAfter=basic.target\n[Service]\nRuntimeDirectory=sshd\nRuntimeDirectoryPreserve=yes\nExecStart=/usr/sbin/sshd -D -e\nKillMode=process\n');
  const kept = /^(systemd-journald|systemd-tmpfiles-setup\.service|systemd-journal-flush)/;
  const off = ['/usr/lib/systemd/system/sysinit.target.wants', '/usr/lib/systemd/system/local-fs.target.wants'].flatMap((folder) => (existsSync(folder) ? readdirSync(folder) : []));
  for (const name of [...off.filter((one) => !kept.test(one)), 'dbus.service', 'dbus.socket', 'systemd-logind.service', 'systemd-udevd.service', 'network-online.target', 'time-sync.target', 'tmp.mount']) symlinkSync('/dev/null', join(units, name));
  writeFileSync(join(root, 'etc/machine-id'), `${'0123456789abcdef'.repeat(2)}\n`);
  mkdirSync(join(root, 'var/log/journal'), { recursive: true });
}

/** From the leaves up; false while a process is in one. */
function removeGroups(group: string): boolean {
  if (!existsSync(group)) return true;
  for (const entry of readdirSync(group, { withFileTypes: true })) if (entry.isDirectory()) removeGroups(join(group, entry.name));
  try {
    rmdirSync(group);
    return true;
  } catch {
    return false;
  }
}

function makeRoot(root: string, publicKey: string, { smallOpt, arch, without }: { smallOpt: string; arch: string | undefined; without: string[] }): void {
  for (const folder of ['etc/ssh', 'var/lib', 'var/log', 'var/tmp', 'var/cache', 'home/pi/.ssh', 'opt', 'tmp', 'run', 'root/.ssh', 'proc', 'sys', 'dev', 'usr', 'old', 'local/bin']) mkdirSync(join(root, folder), { recursive: true });
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) if (existsSync(`/${name}`)) symlinkSync(`usr/${name}`, join(root, name));
  for (const name of ETC) if (existsSync(`/etc/${name}`)) cpSync(`/etc/${name}`, join(root, 'etc', name), { recursive: true, verbatimSymlinks: true });
  chmodSync(join(root, 'tmp'), 0o1777);
  symlinkSync('../run', join(root, 'var/run'));
  writeFileSync(join(root, 'missing-tools'), without.map((name) => `${name}\n`).join(''));
  writeFileSync(join(root, 'small-opt'), smallOpt);
  const passwd = readFileSync(join(root, 'etc/passwd'), 'utf8').split('\n').filter((line) => line !== '' && !/^(sshd|pi|moefleet):/.test(line));
  writeFileSync(join(root, 'etc/passwd'), [...passwd, 'sshd:x:991:65534::/run/sshd:/usr/sbin/nologin', 'pi:x:1990:1990::/home/pi:/bin/sh', ''].join('\n'));
  writeFileSync(join(root, 'etc/group'), `${readFileSync(join(root, 'etc/group'), 'utf8').split('\n').filter((line) => line !== '' && !/^(pi|moefleet):/.test(line)).join('\n')}\npi:x:1990:\n`);
  const shadow = readFileSync(join(root, 'etc/shadow'), 'utf8').split('\n').filter((line) => line !== '' && !/^(root|sshd|pi|moefleet):/.test(line));
  writeFileSync(join(root, 'etc/shadow'), [...shadow, 'root:*:19000:0:99999:7:::', 'sshd:!:19000::::::', 'pi:*:19000:0:99999:7:::', ''].join('\n'));
  // What useradd and userdel leave beside these is there before as well.
  for (const name of ['passwd', 'group', 'shadow', 'gshadow']) if (existsSync(join(root, 'etc', name))) cpSync(join(root, 'etc', name), join(root, 'etc', `${name}-`));
  writeFileSync(join(root, 'etc/.pwd.lock'), '', { mode: 0o600 });
  for (const [home, id] of [['root', 0], ['home/pi', 1990]] as const) {
    writeFileSync(join(root, home, '.ssh/authorized_keys'), publicKey, { mode: 0o600 });
    for (const path of [home, `${home}/.ssh`, `${home}/.ssh/authorized_keys`]) chownSync(join(root, path), id, id);
    chmodSync(join(root, home), 0o700);
    chmodSync(join(root, home, '.ssh'), 0o700);
  }
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(root, 'etc/ssh/ssh_host_ed25519_key')]);
  writeFileSync(join(root, 'etc/ssh/sshd_config'), 'HostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM no\nUseDNS no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile /run/sshd.pid\nMaxStartups 50:30:100\n');
  if (arch !== undefined) writeFileSync(join(root, 'local/bin/uname'), `#!/bin/sh\nif [ "$*" = -m ]; then echo ${arch}; else exec /usr/bin/uname "$@"; fi\n`, { mode: 0o755 });
}

function onPath(name: string): boolean {
  return (process.env['PATH'] ?? '').split(':').concat('/usr/sbin', '/sbin').some((folder) => existsSync(join(folder, name)));
}

function answers(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, host);
    const end = (value: boolean) => { socket.destroy(); resolve(value); };
    socket.once('data', (data) => end(data.toString().startsWith('SSH-')));
    socket.once('error', () => end(false));
    socket.setTimeout(500, () => end(false));
  });
}
