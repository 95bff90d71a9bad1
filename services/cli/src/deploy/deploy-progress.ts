/** Where each host is: a table that rewrites itself on a terminal, a line per change elsewhere. */
import { LiveText, type Terminal } from '../live-text';

const SHARE_EVERY_MS = 5000;

interface Row { phase: string; fraction: number | null; saidMs: number; saidPhase: string; }

export class DeployProgress {
  private readonly rows = new Map<string, Row>();
  private readonly live: LiveText | null;

  constructor(private readonly stream: Terminal, ids: readonly string[], private readonly nowMs: () => number = Date.now) {
    for (const id of ids) this.rows.set(id, { phase: 'waiting', fraction: null, saidMs: 0, saidPhase: '' });
    this.live = stream.isTTY ? new LiveText(stream, (most) => this.lines(most)) : null;
  }

  update(id: string, phase: string, fraction: number | null = null): void {
    const row = this.rows.get(id)!;
    Object.assign(row, { phase, fraction });
    if (this.live) return this.live.refresh();
    const now = this.nowMs();
    if (row.saidPhase === phase && (fraction === null || now - row.saidMs < SHARE_EVERY_MS)) return;
    Object.assign(row, { saidMs: now, saidPhase: phase });
    this.stream.write(`${id}: ${rowText(row)}\n`);
  }

  /** Takes the table away; what follows is the report. */
  end(): void {
    this.live?.clear();
  }

  /** Those that wait and those that are done are counted where the terminal has too few rows for all. */
  private lines(most: number): string[] {
    const all = [...this.rows];
    const shown = all.length <= most ? all : all.filter(([, { phase }]) => !['waiting', 'done', 'failed'].includes(phase)).slice(0, most - 1);
    const width = Math.max(...all.map(([id]) => id.length));
    const lines = shown.map(([id, row]) => `${id.padEnd(width)}  ${rowText(row)}`);
    if (shown.length < all.length) {
      const count = (phase: string) => all.filter(([, row]) => row.phase === phase).length;
      lines.push(`${all.length} hosts: ${count('done')} done, ${count('failed')} failed, ${count('waiting')} waiting`);
    }
    return lines;
  }
}

function rowText({ phase, fraction }: Row): string {
  return fraction === null ? phase : `${phase} ${Math.floor(fraction * 100)}%`;
}
