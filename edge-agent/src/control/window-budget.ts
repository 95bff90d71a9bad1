/** What recorded windows may weigh: compressed bytes in any hour and any day, over restarts. */
import type { RouterSampling } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';

const FILE = 'window-budget.json';
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** Windows of a day that are remembered one by one; the oldest are then counted with the next. */
const MOST_ENTRIES = 512;

interface Spent { timeMs: number; bytes: number }

export interface BudgetFile { read(name: string): string | null; write(name: string, text: string): void }

export class WindowBudget {
  private spent: Spent[];

  constructor(private readonly folder: BudgetFile, private readonly log: Logger, private readonly nowMs: () => number = Date.now) {
    this.spent = this.load();
  }

  /** Whether `bytes` more stay within what the spec grants. */
  allows({ bytesPerHour, bytesPerDay }: RouterSampling, bytes: number): boolean {
    return this.spentBytes(HOUR_MS) + bytes <= Number(bytesPerHour) && (bytesPerDay === undefined || this.spentBytes(DAY_MS) + bytes <= Number(bytesPerDay));
  }

  spend(bytes: number): void {
    this.spent.push({ timeMs: this.nowMs(), bytes });
    while (this.spent.length > MOST_ENTRIES) this.spent[1]!.bytes += this.spent.shift()!.bytes;
    try {
      this.folder.write(FILE, `${JSON.stringify(this.spent)}\n`);
    } catch (error) {
      this.log.warn({ file: FILE, reason: (error as Error).message }, 'what router windows have taken cannot be stored; after a restart the day begins anew');
    }
  }

  private spentBytes(spanMs: number): number {
    const now = this.nowMs();
    this.spent = this.spent.filter(({ timeMs }) => timeMs > now - DAY_MS);
    // What lies ahead was written before the clock was put back, and counts.
    return this.spent.reduce((sum, { timeMs, bytes }) => (timeMs > now - spanMs ? sum + bytes : sum), 0);
  }

  private load(): Spent[] {
    try {
      const list = JSON.parse(this.folder.read(FILE) ?? '[]') as Spent[];
      if (!Array.isArray(list) || !list.every(({ timeMs, bytes }) => Number.isFinite(timeMs) && bytes >= 0)) throw new Error('no list of times and bytes');
      // A clock that was far ahead must not hold windows back for ever.
      return list.map(({ timeMs, bytes }) => ({ timeMs: Math.min(timeMs, this.nowMs()), bytes }));
    } catch (error) {
      this.log.warn({ file: FILE, reason: (error as Error).message }, 'what router windows have taken is not known; the day begins anew');
      return [];
    }
  }
}
