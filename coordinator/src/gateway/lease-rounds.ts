/**
 * Goes round all devices once in a period, a few at a time: each prolongs its lease and notices what a lost wake-up has left
 * undone. Ten thousand at once would keep everybody else waiting, with Redis first. How far a round has come depends on
 * the clock alone, so that one that was held up catches up. Who joins is in the next round, well within a lease.
 */
export interface LeaseHolders { all(): readonly { tick(): unknown }[] }

const STEPS = 25;
const LEAST_STEP_MS = 20;

export class LeaseRounds {
  private round: readonly { tick(): unknown }[] = [];
  private done = 0;
  private begunMs = 0;
  private timer: NodeJS.Timeout | undefined;

  /** `now`: milliseconds, never going back */
  constructor(private readonly holders: LeaseHolders, private readonly periodMs: number, private readonly now: () => number = () => performance.now()) {}

  start(): void {
    this.begin();
    this.timer = setInterval(() => this.step(), Math.max(LEAST_STEP_MS, this.periodMs / STEPS));
  }

  stop(): void {
    clearInterval(this.timer);
    this.round = [];
  }

  private step(): void {
    const share = Math.min(1, (this.now() - this.begunMs) / this.periodMs);
    const due = Math.floor(share * this.round.length);
    while (this.done < due) void this.round[this.done++]!.tick();
    if (share === 1) this.begin();
  }

  private begin(): void {
    this.round = this.holders.all();
    this.done = 0;
    this.begunMs = this.now();
  }
}
