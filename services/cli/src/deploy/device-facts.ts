/** What deploy/device/probe.sh says of a device. What a device says is not trusted: each value is checked as it is read. */
import { DeployError } from './deploy-error';

export interface DeviceFacts {
  /** system: root, or sudo without a password; user: everything below the home of who logs in */
  scope: 'system' | 'user';
  prefix: string;
  config: string;
  state: string;
  login: string;
  os: string;
  arch: string;
  kernel: string;
  hostname: string;
  distribution: string;
  board: string;
  /** null: another C library, or none that tells */
  glibc: string | null;
  /** newest symbols of libstdc++; null: it is not there */
  glibcxx: string | null;
  memoryBytes: number;
  availableBytes: number;
  cores: number;
  pressure: boolean;
  cgroup: '1' | '2' | 'none';
  cgroupMemory: boolean;
  /** null: not run by systemd */
  systemd: number | null;
  systemdNotify: boolean;
  tools: { tar: boolean; zstd: boolean; gzip: boolean; sha256sum: boolean; setsid: boolean };
  clockMs: number;
  prefixDisk: string;
  prefixFreeBytes: number;
  stateDisk: string;
  stateFreeBytes: number;
  /** null: not measured */
  directIo: boolean | null;
  flashBytesPerSecond: number | null;
  /** of an earlier deployment; empty: none */
  installed: {
    user: boolean; bundleSha256: string; settingsSha256: string; keySha256: string; unitSha256: string; launcherSha256: string; modelSha256: string; enrolled: boolean; running: boolean;
  };
}

/** Throws DeployError where the answer is not a whole one. */
export function parseFacts(text: string): DeviceFacts {
  const values = new Map(text.split('\n').map((line) => /^([a-z0-9_]+)=(.*)$/.exec(line.trimEnd())).filter((match) => match !== null).map((match) => [match[1]!, match[2]!.trim().slice(0, 500)]));
  if (values.get('complete') !== 'yes') throw new DeployError('the device did not tell what it is', 'log in and try: uname -a; df -Pk /; the device needs a POSIX sh, awk and /proc');
  const word = (name: string) => values.get(name) ?? '';
  const number = (name: string) => (/^\d{1,18}$/.test(word(name)) ? Number(word(name)) : 0);
  const yes = (name: string) => word(name) === 'yes';
  const hash = (name: string) => (/^[0-9a-f]{64}$/.test(word(name)) ? word(name) : '');
  const path = (name: string) => {
    const value = word(name);
    // It becomes part of scripts and unit files.
    if (!/^\/[A-Za-z0-9._/@+-]*$/.test(value)) throw new DeployError(`the device names "${value}" as its folder`, 'log in as a user whose home is a plain path');
    return value;
  };
  return {
    scope: word('scope') === 'system' ? 'system' : 'user',
    prefix: path('prefix'), config: path('config'), state: path('state'),
    login: word('login'), os: word('os'), arch: word('arch'), kernel: word('kernel'), hostname: word('hostname'), distribution: word('distribution'), board: word('board'),
    glibc: /^\d+\.\d+/.test(word('glibc')) ? word('glibc') : null,
    glibcxx: /^3\.4\.\d+$/.test(word('glibcxx')) ? word('glibcxx') : null,
    memoryBytes: number('memory_bytes'), availableBytes: number('available_bytes'), cores: number('cores'),
    pressure: yes('pressure'), cgroup: word('cgroup') === '2' ? '2' : word('cgroup') === '1' ? '1' : 'none', cgroupMemory: yes('cgroup_memory'),
    systemd: number('systemd') || null, systemdNotify: yes('systemd_notify'),
    tools: { tar: yes('tool_tar'), zstd: yes('tool_zstd'), gzip: yes('tool_gzip'), sha256sum: yes('tool_sha256sum'), setsid: yes('tool_setsid') },
    clockMs: number('clock_ms'),
    prefixDisk: word('prefix_disk'), prefixFreeBytes: number('prefix_free_bytes'), stateDisk: word('state_disk'), stateFreeBytes: number('state_free_bytes'),
    directIo: values.has('direct_io') ? yes('direct_io') : null, flashBytesPerSecond: number('flash_bytes_per_second') || null,
    installed: {
      user: yes('user_exists'), bundleSha256: hash('installed_bundle'), settingsSha256: hash('settings_sha256'), keySha256: hash('key_sha256'), unitSha256: hash('unit_sha256'), launcherSha256: hash('launcher_sha256'),
      modelSha256: hash('model_sha256'), enrolled: yes('enrolled'), running: yes('running'),
    },
  };
}

/** How the bundle names an architecture; null for one there is no bundle for. */
export function bundleArch(arch: string): 'x64' | 'arm64' | null {
  if (/^(x86_64|amd64)$/.test(arch)) return 'x64';
  return /^(aarch64|arm64)$/.test(arch) ? 'arm64' : null;
}
