/**
 * Watches the machine's memory and has the expert cache give way: a look every quarter of a second, a decision by
 * memory-pressure.ts, and what follows from it through the applier, which has the engine give memory back at the next
 * layer and tells the coordinator. What was decided for one model does not hold for the next.
 */
import { formatSize, type Logger, type Service } from '@moefleet/runtime';
import type { EngineHost, LoadedModel } from '../engine-host';
import type { DesiredApplier } from './desired-applier';
import type { MemoryGuard } from '../host/host-client';
import type { EngineMemory } from '../native';
import { FIRST_ANSWERS_BYTES, firstLimit, type MemorySample, nextPressure, NO_PRESSURE, type PressureChange, type PressurePolicy, pressureOf, type PressureState } from './memory-pressure';
import { stallShare, type MemoryReading } from './process-memory';
import { checkCacheFits, checkHostFits, promptBudget, promptBytesOf } from './start-memory';

const LOOK_EVERY_MS = 250;
/** A single short stall is no pressure. */
const STALL_WINDOW_MS = 1_000;
/** Of what is kept free, while a text is scored: the context for that is the agent's own need, and given back in a moment. */
const KEPT_WHILE_SCORING = 0.25;
/** With so many times `lowBytes` beside all that the cache might take, nobody asks what it holds. */
const PLENTY = 2;

export interface MemoryWatchOptions {
  host: Pick<EngineHost, 'state' | 'memory'>;
  applier: Pick<DesiredApplier, 'inForce' | 'limitCache' | 'holdCache' | 'wantedBytes'>;
  policy: PressurePolicy;
  read: () => MemoryReading;
  /** whether a text is scored at this moment, for which memory is taken and given back */
  scoring: () => boolean;
  /** monotonic, milliseconds */
  now: () => number;
  log: Logger;
}

export class MemoryWatch implements Service, MemoryGuard {
  readonly name = 'memory watch';
  private state: PressureState = NO_PRESSURE;
  private modelHash = '';
  private answered = false;
  /** as the engine told last */
  private promptBytes = 0;
  /** what held before a cut while a text was scored; null: there was none */
  private beforeScoring: PressureState | null = null;
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

  beforeStart(): void {
    checkHostFits(this.options.read());
  }

  beforeOpen(model: LoadedModel): number | null {
    const { applier, policy, read } = this.options;
    const promptBytes = promptBudget(read(), model.info, applier.wantedBytes(model), policy.lowBytes);
    if (promptBytes !== null) applier.holdCache({ bytes: model.info.tokenCycleBytes, reason: 'what the model leaves is not known yet' });
    return promptBytes;
  }

  opened(model: LoadedModel, memory: EngineMemory): void {
    const { applier, policy, read, log } = this.options;
    const reading = read();
    checkCacheFits(reading, model.info, memory);
    if (model.hash !== this.modelHash) this.state = { ...NO_PRESSURE };
    this.modelHash = model.hash;
    this.answered = false;
    this.promptBytes = promptBytesOf(memory);
    const { availableBytes } = reading;
    const first = firstLimit({ availableBytes, wantedBytes: applier.wantedBytes(model), floorBytes: model.info.tokenCycleBytes, promptBytes: this.promptBytes }, policy);
    if (first !== null) this.state = { ...this.state, limitBytes: Math.min(first, this.state.limitBytes ?? Infinity), changedMs: this.options.now() };
    const { limitBytes } = this.state;
    const reason = `${formatSize(availableBytes)} were left with the model open, of which ${formatSize(policy.lowBytes)} are to stay free (--memory-low) and the rest is for prompts and the agent itself`;
    applier.holdCache(limitBytes === null ? null : { bytes: limitBytes, reason });
    if (limitBytes !== null) log.info({ cacheLimitBytes: limitBytes, availableBytes, promptBytes: this.promptBytes }, 'expert cache begins with the memory there is');
  }

  /** What scoring a text may take now, beside the experts that pass through meanwhile. */
  scoringBytes(): number {
    const { read, policy } = this.options;
    return Math.max(0, Math.floor(read().availableBytes - KEPT_WHILE_SCORING * policy.lowBytes - this.promptBytes));
  }

  /** It has taken what it takes for its first answers. */
  served(): void {
    this.answered = true;
  }

  /** One look and what follows from it; the next comes when this one is done. */
  async look(): Promise<void> {
    const { host, applier } = this.options;
    const now = this.remember();
    const { inForce } = applier;
    if (host.state.t !== 'ready' || !inForce) return;
    const { info } = host.state.model;
    const { wantedBytes } = inForce.effective;
    const scoring = this.options.scoring();
    if (!scoring) await this.forgetScoring(now.nowMs);
    const policy = scoring ? { ...this.options.policy, lowBytes: this.options.policy.lowBytes * KEPT_WHILE_SCORING } : this.options.policy;
    const pressed = pressureOf(now, policy) !== null;
    // What is left meanwhile says nothing of what there will be.
    if (scoring && !pressed) return;
    if (scoring) this.beforeScoring ??= this.state;
    const asks = pressed || this.state.limitBytes !== null || now.availableBytes < wantedBytes + PLENTY * policy.lowBytes + this.promptBytes;
    const memory = asks ? await host.memory() : null;
    if (memory) this.promptBytes = promptBytesOf(memory);
    // The cache may have been filled further since the look.
    const availableBytes = memory ? Math.min(now.availableBytes, this.options.read().availableBytes) : now.availableBytes;
    await this.decide({
      ...now, availableBytes, wantedBytes, floorBytes: info.tokenCycleBytes, heldBytes: memory?.residentBytes ?? 0,
      promptBytes: this.promptBytes + (this.answered ? 0 : FIRST_ANSWERS_BYTES),
    }, policy, pressed);
  }

  /** What a cut gave while a text was scored is not wanted any more, and says nothing of what the cache may hold. */
  private async forgetScoring(nowMs: number): Promise<void> {
    const before = this.beforeScoring;
    this.beforeScoring = null;
    if (!before || before.limitBytes === this.state.limitBytes) return;
    this.state = { ...before, changedMs: nowMs };
    await this.follow({ t: 'grow', limitBytes: before.limitBytes, reason: 'the text has been scored' }, {});
  }

  private async decide(sample: MemorySample, policy: PressurePolicy, pressed: boolean): Promise<void> {
    const { state, change } = nextPressure(this.state, sample, policy);
    this.state = state;
    const { availableBytes, stallPercent, floorBytes, heldBytes, promptBytes } = sample;
    if (!change) return this.tellFloor(pressed && state.limitBytes === floorBytes, sample);
    await this.follow(change, { availableBytes, stallPercent, heldBytes, promptBytes });
  }

  private async follow(change: PressureChange, seen: Partial<MemorySample>): Promise<void> {
    const { applier, log } = this.options;
    if (change.t === 'shrink') this.shrinkCount += 1;
    if (change.t === 'grow') this.growCount += 1;
    log[change.t === 'shrink' ? 'warn' : 'info']({ change: change.t, cacheLimitBytes: change.limitBytes, reason: change.reason, ...seen }, 'expert cache follows the memory there is');
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
