/** What the probe says of a board in good order; `change` overrides lines, null leaves one out. */
export function factsText(change: Readonly<Record<string, string | null>> = {}): string {
  const lines: Record<string, string | null> = {
    scope: 'system', prefix: '/opt/moefleet', config: '/etc/moefleet', state: '/var/lib/moefleet', login: 'root', os: 'Linux', arch: 'aarch64', kernel: '5.15.148-tegra', hostname: 'orin',
    distribution: 'Ubuntu 22.04.5 LTS', board: 'NVIDIA Jetson Orin Nano', glibc: '2.35', glibcxx: '3.4.30', memory_bytes: '8000000000', available_bytes: '6000000000', cores: '6', pressure: 'yes', cgroup: '2',
    cgroup_memory: 'yes', systemd: '249', systemd_notify: 'yes', tool_tar: 'yes', tool_zstd: 'yes', tool_gzip: 'yes', tool_sha256sum: 'yes', tool_setsid: 'yes', clock_ms: '1000000',
    prefix_disk: '/', prefix_free_bytes: '20000000000', state_disk: '/', state_free_bytes: '20000000000', direct_io: 'yes', flash_bytes_per_second: '900000000', user_exists: 'no', installed_bundle: '',
    settings_sha256: '', key_sha256: '', unit_sha256: '', launcher_sha256: '', enrolled: 'no', running: 'no', complete: 'yes', ...change,
  };
  return Object.entries(lines).filter(([, value]) => value !== null).map(([name, value]) => `${name}=${value}\n`).join('');
}
