/** Memory as Linux tells it under /proc; the parsers are pure, the readers give 0 or null where a file is missing. */
import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';

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
  const text = pid === null ? null : read(`/proc/${pid}/status`);
  return text === null ? 0 : parseKilobytes(text, 'VmRSS') ?? 0;
}

/** What could be allocated now without swapping, in bytes, within the container's limit where there is one. */
export function availableBytes(): number {
  const free = parseKilobytes(read('/proc/meminfo') ?? '', 'MemAvailable') ?? 0;
  const constrained = process.constrainedMemory();
  return constrained > 0 && constrained < totalmem() ? Math.min(free, constrained) : free;
}

/** null where the kernel has no pressure stall information. */
export function memoryPressurePercent(): number | null {
  const text = read('/proc/pressure/memory');
  return text === null ? null : parsePressure(text);
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}
