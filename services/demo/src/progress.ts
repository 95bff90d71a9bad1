/** What a person sees while the demo works: numbered steps, and under each the latest line, on standard error. */
/** Without a terminal. */
const NOTE_EVERY_MS = 10_000;

export class Progress {
  private readonly begun = Date.now();
  private live = false;
  private saidMs = Date.now();

  constructor(private readonly out: NodeJS.WriteStream) {}

  step(text: string): void {
    this.endLine();
    this.saidMs = Date.now();
    this.out.write(`[${String(Math.round((Date.now() - this.begun) / 1000)).padStart(3)} s] ${text}\n`);
  }

  /** Replaces the previous note on a terminal; elsewhere only the latest is told, where nothing else was for a while. */
  note(text: string): void {
    if (!this.out.isTTY) {
      if (Date.now() - this.saidMs >= NOTE_EVERY_MS) this.step(`  ${text}`);
      return;
    }
    const width = (this.out.columns ?? 80) - 9;
    this.out.write(`\r\x1b[2K        ${text.slice(0, width)}`);
    this.live = true;
  }

  endLine(): void {
    if (this.live) this.out.write('\r\x1b[2K');
    this.live = false;
  }
}
