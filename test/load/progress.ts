/** Progress of a load on standard error: one line per step, and one that is written over on a terminal. */
export class Progress {
  private open = false;

  constructor(private readonly out: NodeJS.WriteStream = process.stderr) {}

  step(text: string): void {
    this.endLine();
    this.out.write(`${text}\n`);
  }

  now(text: string): void {
    if (!this.out.isTTY) return;
    this.out.write(`\r\x1b[2K${text}`);
    this.open = true;
  }

  endLine(): void {
    if (this.open) this.out.write('\n');
    this.open = false;
  }
}
