/** Says in one line how the engine host ended: the signal or exit code, and the last it wrote on standard error. */

const KEPT_LINES = 12;
const MAX_LINE = 400;

/** The last lines of a child's standard error, in bounded memory. */
export class LastLines {
  private readonly lines: string[] = [];
  private partial = '';

  push(chunk: string): void {
    const pieces = (this.partial + chunk).split('\n');
    this.partial = (pieces.pop() ?? '').slice(-MAX_LINE);
    for (const piece of pieces) if (piece.trim()) this.lines.push(piece.trim().slice(0, MAX_LINE));
    this.lines.splice(0, Math.max(0, this.lines.length - KEPT_LINES));
  }

  all(): string[] {
    return this.partial.trim() ? [...this.lines, this.partial.trim()] : [...this.lines];
  }
}

export interface ProcessEnd { signal: NodeJS.Signals | null; exitCode: number | null; lastLines: readonly string[]; }

/** The line that explains an abort best: an assertion, else the last that is no frame of a backtrace. */
export function tellingLine(lines: readonly string[]): string {
  const assertion = lines.find((line) => /assert|abort|terminate called|what\(\)|error:/i.test(line));
  return assertion ?? [...lines].reverse().find((line) => !/^(#\d+|\/\S+\.so|\[0x)/.test(line)) ?? '';
}

export function describeEnd(end: ProcessEnd): string {
  const how = end.signal ? `was ended by ${end.signal}` : `exited with code ${end.exitCode ?? 'unknown'}`;
  const line = tellingLine(end.lastLines);
  const hint = !line && end.signal === 'SIGKILL' ? ' (the kernel does this when memory runs out; see dmesg)' : '';
  return `the engine host ${how}${line ? `: ${line}` : hint}`;
}
