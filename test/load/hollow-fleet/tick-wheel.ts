/** One timer for thousands of waits: a wait is a place in a ring of slots, and costs no timer of its own. */
const SLOT_MS = 50;
/** Longer waits go round more than once. */
const SLOTS = 1024;

interface Wait { dueMs: number; run: (() => void) | null }

export class TickWheel {
  private readonly slots: Wait[][] = Array.from({ length: SLOTS }, () => []);
  private atMs: number;
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly now: () => number = Date.now) {
    this.atMs = now();
  }

  start(): void {
    this.timer ??= setInterval(() => this.advance(), SLOT_MS);
  }

  stop(): void {
    clearInterval(this.timer);
    this.timer = undefined;
    for (const slot of this.slots) slot.length = 0;
  }

  /** `run` after at least `waitMs`, late by up to two slots; the result cancels it. */
  after(waitMs: number, run: () => void): () => void {
    const wait: Wait = { dueMs: this.now() + waitMs, run };
    this.place(wait);
    return () => { wait.run = null; };
  }

  private place(wait: Wait): void {
    this.slots[Math.ceil(Math.max(wait.dueMs, this.atMs + SLOT_MS) / SLOT_MS) % SLOTS]!.push(wait);
  }

  /** Runs what is due in the slots that time has passed since. */
  private advance(): void {
    const nowMs = this.now();
    const from = Math.max(this.atMs, nowMs - SLOTS * SLOT_MS);
    this.atMs = nowMs;
    for (let at = Math.floor(from / SLOT_MS) + 1; at <= Math.floor(nowMs / SLOT_MS); at += 1) {
      const due = this.slots[at % SLOTS]!.splice(0);
      for (const wait of due) {
        if (!wait.run) continue;
        if (wait.dueMs <= nowMs) wait.run();
        else this.slots[at % SLOTS]!.push(wait);
      }
    }
  }
}
