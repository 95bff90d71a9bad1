/**
 * Watches the machine's memory and has the expert cache give way: a look every quarter of a second, a decision by
 * memory-pressure.ts, and what follows from it through the applier, which has the engine give memory back at the next
 * layer and tells the coordinator. What was decided for one model does not hold for the next.
 */
import type { Logger, Service } from '@moefleet/runtime';
import type { EngineHost } from '../engine-host';
import type { DesiredApplier } from './desired-applier';
import { type MemorySample, nextPressure, NO_PRESSURE, type PressurePolicy, pressureOf, type PressureState } from './memory-pressure';
import { stallShare, type MemoryReading } from './process-memory';

const LOOK_EVERY_MS = 250;
/** A single short stall is no pressure. */
const STALL_WINDOW_MS = 1_000;
/** Of what is kept free, while a text is scored: the context for that is the agent's own need, and given back in a moment. */
const KEPT_WHILE_SCORING = 0.25;

export interface MemoryWatchOptions {
  host: Pick<EngineHost, 'state' | 'memory'>;
  applier: Pick<DesiredApplier, 'inForce' | 'limitCache'>;
  policy: PressurePolicy;
  read: () => MemoryReading;
  /** whether a text is scored at this moment, for which memory is taken and given back */
  scoring: () => boolean;
  /** monotonic, milliseconds */
  now: () => number;
  log: Logger;
}

export class MemoryWatch implements Service {
  readonly name = 'memory watch';
  private state: PressureState = NO_PRESSURE;
  private modelHash = '';
  /** readings of the last second, oldest first */
  private readings: { nowMs: number; reading: MemoryReading }[] = [];
  private timer: NodeJS.Timeout | null = null;
  private looking: Promise<void> = Promise.resolve();
  private stopped = false;
  private shrinkCount = 0;
  private growCount = 0;
  private atFloor = false;

  constructor(private readonly options: MemoryWatchOptions) {}

  get counts(): { shrink: number; grow: number } {
    return { shrink: this.shrinkCount, grow: this.growCount };
  }

  /** most bytes of experts now; null: as many as are wanted */
  get limitBytes(): number | null {
    return this.state.limitBytes;
  }

  async start(): Promise<void> {
    this.lookLater();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    if (this.timer) clearTimeout(this.timer);
    await this.looking;
  }

  /** One look and what follows from it; the next comes when this one is done. */
  async look(): Promise<void> {
    const { host, applier } = this.options;
    const now = this.remember();
    const { inForce } = applier;
    if (host.state.t !== 'ready' || !inForce) return;
    const { hash, info } = host.state.model;
    if (hash !== this.modelHash) {
      this.modelHash = hash;
      this.state = { ...NO_PRESSURE };
      if (inForce.effective.cacheBytes < inForce.effective.wantedBytes) await applier.limitCache(null);
    }
    const scoring = this.options.scoring();
    const policy = scoring ? { ...this.options.policy, lowBytes: this.options.policy.lowBytes * KEPT_WHILE_SCORING } : this.options.policy;
    const pressed = pressureOf(now, policy) !== null;
    // What is left meanwhile says nothing of what there will be.
    if (scoring && !pressed) return;
    const heldBytes = pressed ? (await host.memory())?.residentBytes ?? 0 : 0;
    await this.decide({ ...now, heldBytes, wantedBytes: inForce.effective.wantedBytes, floorBytes: info.tokenCycleBytes }, policy, pressed);
  }

  private async decide(sample: MemorySample, policy: PressurePolicy, pressed: boolean): Promise<void> {
    const { applier, log } = this.options;
    const { state, change } = nextPressure(this.state, sample, policy);
    this.state = state;
    const { availableBytes, stallPercent, floorBytes, heldBytes } = sample;
    if (!change) return this.tellFloor(pressed && state.limitBytes === floorBytes, sample);
    if (change.t === 'shrink') this.shrinkCount += 1;
    else this.growCount += 1;
    log[change.t === 'shrink' ? 'warn' : 'info']({ change: change.t, cacheLimitBytes: change.limitBytes, reason: change.reason, availableBytes, stallPercent, ...(pressed ? { heldBytes } : {}) }, 'expert cache follows the memory there is');
    await applier.limitCache(change.limitBytes === null ? null : { bytes: change.limitBytes, reason: change.reason });
  }

  /** Once each time: there is nothing left to give. */
  private tellFloor(atFloor: boolean, { availableBytes, floorBytes }: MemorySample): void {
    if (atFloor && !this.atFloor) this.options.log.warn({ availableBytes, tokenCycleBytes: floorBytes }, 'memory is short, and the cache is down to the experts one token needs; give the device more memory or a smaller model');
    this.atFloor = atFloor;
  }

  private remember(): Pick<MemorySample, 'nowMs' | 'availableBytes' | 'stallPercent'> {
    const nowMs = this.options.now();
    const reading = this.options.read();
    this.readings.push({ nowMs, reading });
    while (this.readings.length > 2 && nowMs - this.readings[1]!.nowMs >= STALL_WINDOW_MS) this.readings.shift();
    const [first] = this.readings;
    const whole = nowMs - first!.nowMs >= STALL_WINDOW_MS;
    return { nowMs, availableBytes: reading.availableBytes, stallPercent: whole ? stallShare(first!.reading, reading, nowMs - first!.nowMs) : null };
  }

  private lookLater(): void {
    this.timer = setTimeout(() => {
      this.looking = this.look()
        .catch((error: Error) => this.options.log.error({ reason: error.message }, 'memory was not looked at'))
        .finally(() => {
          if (!this.stopped) this.lookLater();
        });
    }, LOOK_EVERY_MS);
  }
}
