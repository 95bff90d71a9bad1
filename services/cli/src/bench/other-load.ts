/** How much of the machine's processors others used while something ran: a bench beside other work proves nothing. */
import { readFileSync } from 'node:fs';

/** Fields of /proc/stat's first line, after its name: user nice system idle iowait irq softirq steal. */
const IDLE = [3, 4];
const COUNTED = 8;
const TICKS_PER_SECOND = 100;

export function busySeconds(stat = readFileSync('/proc/stat', 'utf8')): number {
  const ticks = stat.split('\n')[0]!.trim().split(/\s+/).slice(1, 1 + COUNTED).map(Number);
  return ticks.reduce((sum, each, i) => (IDLE.includes(i) ? sum : sum + each), 0) / TICKS_PER_SECOND;
}

/** Processors, on average, that were busy with something else; the clock of /proc/stat is coarse, so it may be a little off. */
export function othersProcessors(busy: number, own: number, elapsed: number): number {
  return elapsed > 0 ? Math.max(0, (busy - own) / elapsed) : 0;
}
