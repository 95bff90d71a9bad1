/**
 * Progress on standard error for work that takes more than two seconds: a line that rewrites itself on a terminal,
 * one line every five seconds elsewhere.
 */
import type { Writable } from 'node:stream';

const PATIENCE_MS = 2000;
const TERMINAL_EVERY_MS = 200;
const LOG_EVERY_MS = 5000;

const BAR_CELLS = 20;

function bar(fraction: number): string {
  return `[${'#'.repeat(Math.floor(Math.min(1, fraction) * BAR_CELLS)).padEnd(BAR_CELLS, '.')}]`;
}

export class ProgressLine {
  private readonly startedMs: number;
  private lastMs = -Infinity;
  private shown = false;

  constructor(private readonly stream: Writable & { isTTY?: boolean }, private readonly nowMs: () => number = Date.now) {
    this.startedMs = nowMs();
  }

  /** `fraction` in [0,1]; `detail` follows the percentage. */
  update(fraction: number, what: string, detail = ''): void {
    const now = this.nowMs();
    if (now - this.startedMs < PATIENCE_MS) return;
    if (now - this.lastMs < (this.stream.isTTY ? TERMINAL_EVERY_MS : LOG_EVERY_MS)) return;
    this.lastMs = now;
    const text = `${what} ${this.stream.isTTY ? `${bar(fraction)} ` : ''}${Math.floor(fraction * 100)}%${detail && `, ${detail}`}`;
    this.stream.write(this.stream.isTTY ? `\r\x1b[K${text}` : `${text}\n`);
    this.shown = true;
  }

  /** Leaves a clean line. */
  end(): void {
    if (this.shown && this.stream.isTTY) this.stream.write('\r\x1b[K');
    this.shown = false;
  }
}
