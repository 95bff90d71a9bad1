/** What a person sees while the demo works: numbered steps, and under each the latest line, on standard error. */
export class Progress {
  private readonly begun = Date.now();
  private live = false;

  constructor(private readonly out: NodeJS.WriteStream) {}

  step(text: string): void {
    this.endLine();
    this.out.write(`[${String(Math.round((Date.now() - this.begun) / 1000)).padStart(3)} s] ${text}\n`);
  }

  /** Replaces the previous note on a terminal; elsewhere notes are left out, steps suffice. */
  note(text: string): void {
    if (!this.out.isTTY) return;
    const width = (this.out.columns ?? 80) - 9;
    this.out.write(`\r\x1b[2K        ${text.slice(0, width)}`);
    this.live = true;
  }

  endLine(): void {
    if (this.live) this.out.write('\r\x1b[2K');
    this.live = false;
  }
}
