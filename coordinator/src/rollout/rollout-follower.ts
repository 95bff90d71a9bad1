/**
 * Watches one rollout until it ends: reads a device again when something about it has changed, and all that are still
 * open every few seconds, in case a wake-up was lost. Says each change to its listeners and keeps the record in the
 * registry up to date.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from '@moefleet/runtime';
import { reasonOf, RegistryDataError } from '../errors';
import { inChunks } from '../registry/chunks';
import type { DeviceProgress } from '../registry/device-record';
import type { FleetEvent } from '../registry/fleet-events';
import type { Registry } from '../registry/registry';
import type { RolloutRecord, RolloutRow } from '../registry/rollout-record';
import { isFinal, judgeRollout, judgeRow } from './rollout-progress';

const LOOK_AGAIN_MS = 2000;
const LOOK_AGAIN_MS_PER_ROW = 0.3;
/** Between two looks, so that wake-ups of many devices are followed together: each look goes through all rows, and tells all to whoever watches. */
const PAUSE_MS = 50;
const PAUSE_MS_PER_ROW = 0.05;
/** Between two writes of a running rollout's record, which holds all rows. */
const SAVE_EVERY_MS = 500;
const SAVE_EVERY_MS_PER_ROW = 0.2;

/** What has been heard of devices since their rows were made: what they run, or that something is another. */
export type Heard = Map<string, FleetEvent['runs']>;

export class RolloutFollower {
  /** Resolves with the finished rollout; rejects where Redis was away at its end. */
  readonly finished: Promise<RolloutRecord>;
  private readonly listeners = new Set<(rollout: RolloutRecord) => void>();
  private readonly stale: Set<string>;
  /** of devices that are stale: what their sessions here have written that they run, which need not be read */
  private readonly running = new Map<string, NonNullable<FleetEvent['runs']>>();
  /** place of a device in the rows */
  private readonly places: ReadonlyMap<string, number>;
  private readonly timers: NodeJS.Timeout[];
  private readonly stopListening: () => void;
  private looking: Promise<void> | null = null;
  private savedMs = 0;
  private settle!: (outcome: { rollout: RolloutRecord } | { error: unknown }) => void;

  /** `rollout` has been stored. `heard`: devices that its rows do not tell the latest of. */
  constructor(private rollout: RolloutRecord, heard: Heard, private readonly registry: Registry, private readonly log: Logger) {
    const open = new Set(rollout.rows.filter((row) => !isFinal(row)).map((row) => row.deviceId));
    this.stale = new Set([...heard.keys()].filter((id) => open.has(id)));
    for (const [id, runs] of heard) if (runs) this.running.set(id, runs);
    this.places = new Map(rollout.rows.map((row, at) => [row.deviceId, at]));
    this.finished = new Promise((resolve, reject) => {
      this.settle = (outcome) => ('rollout' in outcome ? resolve(outcome.rollout) : reject(outcome.error));
    });
    // Whoever follows the stream awaits it; nobody may.
    this.finished.catch(() => {});
    this.stopListening = registry.events.on((event: FleetEvent) => {
      if (!open.has(event.deviceId)) return;
      this.stale.add(event.deviceId);
      if (event.runs) this.running.set(event.deviceId, event.runs);
      this.look();
    });
    this.timers = [
      setInterval(() => this.lookAtAll(), LOOK_AGAIN_MS + LOOK_AGAIN_MS_PER_ROW * rollout.rows.length),
      setTimeout(() => this.lookAtAll(), Math.max(0, rollout.deadlineMs - Date.now())),
    ];
    this.look();
  }

  get current(): RolloutRecord {
    return this.rollout;
  }

  onChange(listener: (rollout: RolloutRecord) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Ends following; the record stays as it is in the registry. */
  abandon(reason: Error): void {
    this.close({ error: reason });
  }

  private lookAtAll(): void {
    for (const row of this.rollout.rows) if (!isFinal(row)) this.stale.add(row.deviceId);
    this.look();
  }

  private look(): void {
    this.looking ??= this.lookUntilFresh().then(
      async () => { await sleep(PAUSE_MS + PAUSE_MS_PER_ROW * this.rollout.rows.length); this.looking = null; if (this.stale.size > 0) this.look(); },
      (error: unknown) => { this.looking = null; this.failed(error); },
    );
  }

  private async lookUntilFresh(): Promise<void> {
    const ids = [...this.stale];
    this.stale.clear();
    try {
      const applied = new Set(ids.filter((id) => this.knownToRun(id)));
      const readings = new Map(await inChunks(ids.filter((id) => !applied.has(id)), async (id) => [id, await this.readDevice(id)] as const));
      const rows = this.rollout.rows.map((row) => (applied.has(row.deviceId) && !isFinal(row) ? { ...row, state: 'applied' as const, reason: '' } : this.judge(row, readings.get(row.deviceId))));
      const changed = rows.some((row, at) => row.state !== this.rollout.rows[at]!.state);
      await this.advance(judgeRollout(this.rollout, rows, Date.now()), changed);
    } catch (error) {
      for (const id of ids) this.stale.add(id);
      throw error;
    }
  }

  /** Whether its session here has written that it runs what its row asks for. */
  private knownToRun(id: string): boolean {
    const running = this.running.get(id);
    this.running.delete(id);
    const row = this.rollout.rows[this.places.get(id)!]!;
    return running !== undefined && running.hash === row.hash && running.generation >= BigInt(row.generation);
  }

  private async readDevice(id: string): Promise<{ device: DeviceProgress | null } | { damage: string }> {
    try {
      return { device: await this.registry.devices.readProgress(id) };
    } catch (error) {
      if (error instanceof RegistryDataError) return { damage: error.message };
      throw error;
    }
  }

  private judge(row: RolloutRow, reading: { device: DeviceProgress | null } | { damage: string } | undefined): RolloutRow {
    if (!reading || isFinal(row)) return row;
    return 'damage' in reading ? { ...row, state: 'failed', reason: reading.damage } : judgeRow(row, reading.device);
  }

  private async advance(next: RolloutRecord, changed: boolean): Promise<void> {
    this.rollout = next;
    const ended = next.state !== 'running';
    if (ended || (changed && Date.now() - this.savedMs > SAVE_EVERY_MS + SAVE_EVERY_MS_PER_ROW * next.rows.length)) {
      this.savedMs = Date.now();
      await this.registry.rollouts.put(next);
    }
    if (changed || ended) for (const listener of [...this.listeners]) listener(next);
    if (ended) this.close({ rollout: next });
  }

  private failed(error: unknown): void {
    if (Date.now() >= this.rollout.deadlineMs) this.close({ error });
    else this.log.debug({ rolloutId: this.rollout.id, reason: reasonOf(error) }, 'rollout cannot be followed now');
  }

  private close(outcome: { rollout: RolloutRecord } | { error: unknown }): void {
    this.stopListening();
    for (const timer of this.timers) clearTimeout(timer);
    this.stale.clear();
    this.running.clear();
    this.settle(outcome);
    this.listeners.clear();
  }
}
