/** Memory as Linux tells it under /proc; the parsers are pure, the readers give 0 or null where a file is missing. */
import { totalmem } from 'node:os';
import { groupPressure, type MemoryGroup, parseMemoryGroup, readGroup, readText } from './cgroup-memory';

/** A field such as `VmRSS` of /proc/PID/status, or `MemAvailable` of /proc/meminfo, in bytes; null if absent. */
export function parseKilobytes(text: string, field: string): number | null {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text);
  return match ? Number(match[1]) * 1024 : null;
}

/** Share of the last 10 s in which some task waited for memory, in percent, from /proc/pressure/memory. */
export function parsePressure(text: string): number | null {
  const match = /^some avg10=(\d+(?:\.\d+)?)/m.exec(text);
  return match ? Number(match[1]) : null;
}

/** Resident set in bytes; 0 for a process that is not there. */
export function residentBytes(pid: number | null): number {
  const text = pid === null ? null : readText(`/proc/${pid}/status`);
  return text === null ? 0 : parseKilobytes(text, 'VmRSS') ?? 0;
}

/** Microseconds since the start in which some task stood still for memory, from a pressure file. */
export function parseStall(text: string): number | null {
  const match = /^some .*total=(\d+)$/m.exec(text);
  return match ? Number(match[1]) : null;
}

/** Memory as it is at one moment, as far as this process may use it. */
export interface MemoryReading {
  availableBytes: number;
  /** of the machine, or of the tightest control group where that has less */
  totalBytes: number;
  /** microseconds of stall so far: the machine's, and the control group's; null where the kernel does not tell */
  stalls: (number | null)[];
}

let ownGroup: MemoryGroup | null | undefined;

export function readMemory(): MemoryReading {
  ownGroup ??= parseMemoryGroup(readText('/proc/self/cgroup') ?? '', readText('/proc/self/mountinfo') ?? '');
  const free = parseKilobytes(readText('/proc/meminfo') ?? '', 'MemAvailable') ?? 0;
  const group = readGroup(ownGroup);
  return {
    availableBytes: Math.min(free, group?.availableBytes ?? Infinity),
    totalBytes: Math.min(totalmem(), group?.limitBytes ?? Infinity),
    stalls: [readText('/proc/pressure/memory'), groupPressure(ownGroup)].map((text) => (text === null ? null : parseStall(text))),
  };
}

/** Share of the time between two readings, in percent, in which some task stood still for memory; null where nobody tells. */
export function stallShare(before: MemoryReading, after: MemoryReading, elapsedMs: number): number | null {
  const shares = after.stalls.flatMap((stall, i) => (stall === null || before.stalls[i] === null ? [] : [(stall - before.stalls[i]!) / 10 / elapsedMs]));
  return shares.length === 0 || elapsedMs <= 0 ? null : Math.max(...shares);
}

/** What could be allocated now without swapping, in bytes, within the control group's limit where there is one. */
export function availableBytes(): number {
  return readMemory().availableBytes;
}

/** The machine's; null where the kernel has no pressure stall information. */
export function memoryPressurePercent(): number | null {
  const text = readText('/proc/pressure/memory');
  return text === null ? null : parsePressure(text);
}
