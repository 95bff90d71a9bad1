/** Where each host is: a table that rewrites itself on a terminal, a line per change elsewhere. */
import type { Writable } from 'node:stream';

const TERMINAL_EVERY_MS = 150;
const SHARE_EVERY_MS = 5000;

interface Row { phase: string; fraction: number | null; saidMs: number; saidPhase: string; }

export class DeployProgress {
  private readonly rows = new Map<string, Row>();
  private drawnLines = 0;
  private drawnMs = -Infinity;

  constructor(private readonly stream: Writable & { isTTY?: boolean; rows?: number }, ids: readonly string[], private readonly nowMs: () => number = Date.now) {
    for (const id of ids) this.rows.set(id, { phase: 'waiting', fraction: null, saidMs: 0, saidPhase: '' });
  }

  update(id: string, phase: string, fraction: number | null = null): void {
    const row = this.rows.get(id)!;
    const news = row.phase !== phase;
    Object.assign(row, { phase, fraction });
    const now = this.nowMs();
    if (this.stream.isTTY) {
      if (!news && now - this.drawnMs < TERMINAL_EVERY_MS) return;
      this.drawnMs = now;
      return this.draw();
    }
    if (row.saidPhase === phase && (fraction === null || now - row.saidMs < SHARE_EVERY_MS)) return;
    Object.assign(row, { saidMs: now, saidPhase: phase });
    this.stream.write(`${id}: ${rowText(row)}\n`);
  }

  /** Takes the table away; what follows is the report. */
  end(): void {
    if (this.drawnLines > 0) this.stream.write(`\x1b[${this.drawnLines}A\x1b[J`);
    this.drawnLines = 0;
  }

  /** Those that wait and those that are done are counted where the terminal has too few rows for all. */
  private draw(): void {
    const most = Math.max(4, (this.stream.rows ?? 24) - 2);
    const all = [...this.rows];
    const shown = all.length <= most ? all : all.filter(([, { phase }]) => !['waiting', 'done', 'failed'].includes(phase)).slice(0, most - 1);
    const width = Math.max(...all.map(([id]) => id.length));
    const lines = shown.map(([id, row]) => `${id.padEnd(width)}  ${rowText(row)}`);
    if (shown.length < all.length) {
      const count = (phase: string) => all.filter(([, row]) => row.phase === phase).length;
      lines.push(`${all.length} hosts: ${count('done')} done, ${count('failed')} failed, ${count('waiting')} waiting`);
    }
    this.stream.write(`${this.drawnLines > 0 ? `\x1b[${this.drawnLines}A` : ''}\x1b[J${lines.join('\n')}\n`);
    this.drawnLines = lines.length;
  }
}

function rowText({ phase, fraction }: Row): string {
  return fraction === null ? phase : `${phase} ${Math.floor(fraction * 100)}%`;
}
