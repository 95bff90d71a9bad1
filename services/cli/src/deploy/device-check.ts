/** What is missing or slow on a device, and what mends it. A pure function of what the device says of itself. */
import { formatSize } from '@moefleet/runtime';
import { bundleArch, type DeviceFacts } from './device-facts';

/** `stop`: it cannot run here; `slow`: it runs, and something could be better; `note`: to know. */
export interface Finding {
  severity: 'stop' | 'slow' | 'note';
  check: string;
  found: string;
  remedy: string;
}

/** Where no bundle is at hand to ask: what the engine's prebuilt libraries need (objdump -T). */
const USUAL: Requirements = { glibc: '2.34', glibcxx: '3.4.30' };
/** MemAvailable, and direct reads as llama.cpp's Node needs them. */
const LEAST_KERNEL = '4.18';
const LEAST_MEMORY_BYTES = 400 * 1024 ** 2;
/** Below it a miss costs so much that a fleet's λ cannot make up for it: an SD card of class 10 reads at some 20 MB/s. */
const SLOW_FLASH_BYTES_PER_SECOND = 80e6;
/** A certificate's first minutes. */
const MOST_CLOCK_SKEW_MS = 4 * 60_000;
/** Left free on a disk whatever is put there. */
export const DISK_RESERVE_BYTES = 64 * 1024 ** 2;

/** The least versions of the device's libraries, as a bundle's manifest tells them. */
export interface Requirements { glibc: string; glibcxx: string; }

export interface Need {
  /** what is still to be put below the prefix, and below the state folder */
  prefixBytes: number;
  stateBytes: number;
}

export function checkDevice(facts: DeviceFacts, need: Need, nowMs: number, requires = USUAL): Finding[] {
  const findings: Finding[] = [];
  const add = (severity: Finding['severity'], check: string, found: string, remedy: string) => findings.push({ severity, check, found, remedy });
  if (facts.os !== 'Linux') add('stop', 'system', `${facts.os || 'unknown'}, not Linux`, 'agents run on Linux; on macOS and Windows use a virtual machine');
  if (bundleArch(facts.arch) === null) add('stop', 'architecture', `${facts.arch || 'unknown'}: there are bundles for x86_64 and aarch64`, 'a 32-bit system on a 64-bit board: install the board\'s 64-bit image; else build from source (./dev build on the device)');
  if (facts.glibc === null) add('stop', 'C library', 'no glibc (musl, or Android\'s own)', 'Alpine: run the agent in a Debian container; Termux: in a proot Debian, see deploy/android');
  else if (older(facts.glibc, requires.glibc)) add('stop', 'C library', `glibc ${facts.glibc}, needed is ${requires.glibc}`, 'use a system of 2021 or later: Debian 12, Ubuntu 22.04, JetPack 6; or build from source (./dev build on the device)');
  else if (facts.glibcxx === null) add('stop', 'C++ library', 'libstdc++ is missing', 'apt-get install libstdc++6');
  else if (older(facts.glibcxx, requires.glibcxx)) add('stop', 'C++ library', `libstdc++ with GLIBCXX_${facts.glibcxx}, needed is GLIBCXX_${requires.glibcxx}`, 'use a system with GCC 12 or later: Debian 12, Ubuntu 22.04, JetPack 6; or build from source (./dev build on the device)');
  if (facts.os === 'Linux' && older(facts.kernel, LEAST_KERNEL)) add('stop', 'kernel', `${facts.kernel}, needed is ${LEAST_KERNEL}`, 'update the system');
  for (const tool of ['tar', 'sha256sum'] as const) {
    if (!facts.tools[tool]) add('stop', 'tools', `${tool} is missing`, `install it on the device: apt-get install ${tool === 'tar' ? 'tar' : 'coreutils'}`);
  }
  checkDisk(facts, need, add);
  if (facts.memoryBytes > 0 && facts.memoryBytes < LEAST_MEMORY_BYTES) add('stop', 'memory', `${formatSize(facts.memoryBytes)}, needed are ${formatSize(LEAST_MEMORY_BYTES)}`, 'use a device with more memory');
  if (Math.abs(facts.clockMs - nowMs) > MOST_CLOCK_SKEW_MS) add('slow', 'clock', `${Math.round(Math.abs(facts.clockMs - nowMs) / 1000)} s ${facts.clockMs < nowMs ? 'behind' : 'ahead'}; certificates may not be valid yet, or any more`, 'set the device\'s clock: timedatectl set-ntp true');
  if (facts.directIo === false) add('slow', 'direct reads', `the file system of ${facts.state} has no O_DIRECT; experts go through the page cache and take memory from it`, 'put the state on ext4, xfs or f2fs');
  if (facts.flashBytesPerSecond !== null && facts.flashBytesPerSecond < SLOW_FLASH_BYTES_PER_SECOND) {
    add('slow', 'flash', `${speed(facts.flashBytesPerSecond)} of direct reads; every miss waits for it`, 'use NVMe, UFS or eMMC instead of an SD card, give the cache more memory (--cache), or pull harder (moefleet lambda set)');
  }
  if (!facts.pressure) add('note', 'memory pressure', 'the kernel does not tell (no PSI); the cache gives way by what is free alone', 'boot with psi=1');
  if (facts.systemd === null) {
    add('note', 'service', facts.scope === 'user' ? 'no root: the agent is supervised by a launcher, and does not come back by itself after a reboot' : 'no systemd: the agent is supervised by a launcher, without a memory limit of its own',
      facts.scope === 'user' ? `start it at boot: @reboot ${facts.prefix}/launcher.sh start (crontab), or Termux:Boot` : `start it with the container: ${facts.prefix}/launcher.sh start`);
  } else {
    if (!facts.cgroupMemory) add('note', 'memory limit', 'the kernel has no memory control group; the service\'s memory limit has no effect', 'boot with cgroup_enable=memory (Raspberry Pi OS: in /boot/firmware/cmdline.txt)');
    if (!facts.systemdNotify) add('stop', 'systemd-notify', 'missing', 'install the whole systemd package on the device');
  }
  if (facts.scope === 'system' && facts.login !== 'root') add('note', 'login', `as ${facts.login}`, '');
  return findings;
}

function checkDisk(facts: DeviceFacts, need: Need, add: (severity: Finding['severity'], check: string, found: string, remedy: string) => void): void {
  const shared = facts.prefixDisk === facts.stateDisk;
  const places = shared
    ? [{ path: facts.state, disk: facts.stateDisk, free: facts.stateFreeBytes, bytes: need.prefixBytes + need.stateBytes }]
    : [{ path: facts.prefix, disk: facts.prefixDisk, free: facts.prefixFreeBytes, bytes: need.prefixBytes }, { path: facts.state, disk: facts.stateDisk, free: facts.stateFreeBytes, bytes: need.stateBytes }];
  for (const { path, disk, free, bytes } of places) {
    if (bytes === 0 || free >= bytes + DISK_RESERVE_BYTES) continue;
    add('stop', 'disk', `${disk} (for ${path}) has ${formatSize(free)} free, needed are ${formatSize(bytes + DISK_RESERVE_BYTES)}`,
      `free ${formatSize(bytes + DISK_RESERVE_BYTES - free)} there (du -xh ${disk} | sort -h | tail), or put a larger disk at ${path}; then run the same command again`);
  }
}

/** By the numbers in them: 2.9 is older than 2.34, 6.1.0-rpi older than 6.2. */
export function older(version: string, than: string): boolean {
  const [a, b] = [version, than].map((text) => text.split(/[^0-9]+/).map(Number)) as [number[], number[]];
  for (let i = 0; i < b.length; i += 1) {
    if ((a[i] ?? 0) !== b[i]) return (a[i] ?? 0) < b[i]!;
  }
  return false;
}

export function speed(bytesPerSecond: number): string {
  return bytesPerSecond >= 1e9 ? `${(bytesPerSecond / 1e9).toFixed(1)} GB/s` : `${Math.round(bytesPerSecond / 1e6)} MB/s`;
}
