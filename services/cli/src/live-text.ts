/** Lines on a terminal that are drawn over when they change, a few times a second at most. */
import type { Writable } from 'node:stream';

export interface Terminal extends Writable { isTTY?: boolean; columns?: number; rows?: number }

const LEAST_MS_BETWEEN = 200;
const DEFAULT_COLUMNS = 80;
const DEFAULT_ROWS = 24;

export class LiveText {
  private drawn = 0;
  private drawnMs = -Infinity;
  private timer: NodeJS.Timeout | undefined;

  /** `lines` is asked whenever they are drawn, with how many there is room for; what is beyond is not drawn. */
  constructor(private readonly terminal: Terminal, private readonly lines: (most: number) => string[]) {}

  /** They have changed. */
  refresh(): void {
    this.timer ??= setTimeout(() => this.draw(), Math.max(0, this.drawnMs + LEAST_MS_BETWEEN - Date.now()));
  }

  /** Leaves them as they are now. */
  end(): void {
    if (!this.timer) return;
    clearTimeout(this.timer);
    this.draw();
  }

  /** Takes them away; what is written next stands in their place. */
  clear(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.drawn > 0) this.terminal.write(`\x1b[${this.drawn}A\r\x1b[J`);
    this.drawn = 0;
  }

  private draw(): void {
    this.timer = undefined;
    this.drawnMs = Date.now();
    // A terminal that does not know its size says 0. The last row is the cursor's.
    const rows = (this.terminal.rows || DEFAULT_ROWS) - 1;
    const columns = this.terminal.columns || DEFAULT_COLUMNS;
    const lines = this.lines(rows).slice(0, rows).map((line) => [...line].slice(0, columns - 1).join(''));
    this.terminal.write(`${this.drawn > 0 ? `\x1b[${this.drawn}A` : ''}\r\x1b[J${lines.map((line) => `${line}\n`).join('')}`);
    this.drawn = lines.length;
  }
}
