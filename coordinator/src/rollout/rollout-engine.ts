/**
 * The only writer of desired state. A change of an operator's that takes effect at once sets or clears a pin, brings every
 * target in line in one stage and follows it to its end; changes in stages are of staged-rollouts.ts. Devices that join or load another model
 * are brought in line with the layers that stand, without a rollout of their own.
 */
import { randomBytes } from 'node:crypto';
import { SpecState } from '@moefleet/proto';
import { type Logger, selectorMatches, type Service } from '@moefleet/runtime';
import { InvalidRequestError, NotFoundError, RegistryDataError, StoppingError } from '../errors';
import { inChunks } from '../registry/chunks';
import { type ChangeSubject, type DesiredRecord, type DeviceRecord, type FleetSubject, speaksOf } from '../registry/device-record';
import type { Registry } from '../registry/registry';
import type { RolloutRecord, RolloutRow, RolloutState } from '../registry/rollout-record';
import { type Change, describeChange, pinField, pinPlace, specFields, type Target } from './change';
import { type DesiredOutcome, DesiredWriter } from './desired-writer';
import { layerText } from './effective-spec';
import { HELD_TEXT } from './held';
import { pinValue } from './pin-value';
import { type Heard, RolloutFollower } from './rollout-follower';
import { judgeRollout, judgeRow, OFFLINE, runs } from './rollout-progress';

export interface RolloutObserver {
  rolloutStarted(): void;
  rolloutEnded(state: RolloutState | 'abandoned'): void;
}

/** `fresh`: it tells of the device what is so now. */
interface AlignedRow { row: RolloutRow; fresh: boolean }

export class RolloutEngine implements Service {
  readonly name = 'rollout engine';
  readonly writer: DesiredWriter;
  private readonly followers = new Set<RolloutFollower>();

  constructor(private readonly registry: Registry, private readonly log: Logger, private readonly observer: RolloutObserver) {
    this.writer = new DesiredWriter(registry, log);
  }

  async start(): Promise<void> {}

  async stop(): Promise<void> {
    for (const follower of this.followers) follower.abandon(new StoppingError());
  }

  /** Sets or clears the pin, writes what follows from it, and returns the rollout that is now under way. `known`: the targets, read a moment ago. */
  async change(target: Target, change: Change, why: string, timeoutMs: number, known?: readonly FleetSubject[]): Promise<RolloutFollower> {
    known ??= await this.subjects(target);
    checkFits(change, known);
    const cleared = await this.applyPin(target, change, why, known);
    // Looked up again: a device that joined meanwhile has been brought in line with the pins as they were before.
    const ids = target.t === 'all' ? await this.registry.devices.ids() : (await this.subjects(target)).map(({ id }) => id);
    const plain = new Map(known.flatMap((device) => (device.plain ? [[device.id, device]] : [])));
    const what = describeChange(change, target);
    const origin = `operator: ${what}${why ? ` (${why})` : ''}`;
    const place = pinPlace(target);
    return this.follow(what, why ? `operator: ${why}` : 'operator', timeoutMs, ids,
      (id) => this.alignRow(id, plain.get(id), origin, (outcome) => whyUnchanged(outcome, change, place.t, cleared)));
  }

  /** Every device to its model's own routing, past all stages, until `release`. */
  async kill(why: string, timeoutMs: number): Promise<RolloutFollower> {
    await this.registry.pins.setKillSwitch({ why, sinceMs: Date.now() });
    this.log.warn({ why }, 'kill switch: lambda off on every device');
    return this.alignAll(`lambda off on all devices`, why, timeoutMs);
  }

  /** Back to the layers below the kill switch; rows say so where it was not held. */
  async release(why: string, timeoutMs: number): Promise<RolloutFollower> {
    const { kill } = await this.registry.pins.shared();
    await this.registry.pins.setKillSwitch(null);
    if (kill) this.log.warn({ why, heldMs: Date.now() - kill.sinceMs }, 'kill switch released');
    return this.alignAll(`lambda on again on all devices`, why, timeoutMs);
  }

  private async alignAll(what: string, why: string, timeoutMs: number): Promise<RolloutFollower> {
    const ids = await this.registry.devices.ids();
    const origin = `kill switch: ${what}${why ? ` (${why})` : ''}`;
    return this.follow(what, why ? `kill switch: ${why}` : 'kill switch', timeoutMs, ids, (id) => this.alignRow(id, undefined, origin, () => 'it runs this already'));
  }

  /** Brings a device that has joined, or whose model or labels have changed, in line with the layers that stand. */
  async alignDevice(deviceId: string): Promise<DesiredRecord | null> {
    return (await this.writer.align(deviceId, 'the device has joined or changed'))?.desired ?? null;
  }

  /** As it stands now, also where the coordinator that followed it has gone; null for an unknown id. */
  async get(id: string): Promise<RolloutRecord | null> {
    const followed = [...this.followers].find((follower) => follower.current.id === id);
    if (followed) return followed.current;
    const stored = await this.registry.rollouts.get(id);
    if (!stored || stored.state !== 'running') return stored;
    const rows = await inChunks(stored.rows, async (row) => judgeRow(row, await this.registry.devices.readProgress(row.deviceId)));
    const judged = judgeRollout(stored, rows, Date.now());
    if (judged.state !== 'running') await this.registry.rollouts.put(judged);
    return judged;
  }

  /** Brings held devices in line with the layers as they stand now; which were held. */
  async acceptRestore(deviceIds: readonly string[], origin: string): Promise<string[]> {
    const accepted = await inChunks(deviceIds, async (id) => {
      const before = await this.writer.align(id, origin);
      return before?.held && (await this.writer.align(id, origin, true))?.written ? [id] : [];
    });
    return accepted.flat();
  }

  /** A device whose values in Redis are damaged fails alone. */
  private async alignRow(deviceId: string, plain: FleetSubject | undefined, origin: string, whyUnchanged: (outcome: DesiredOutcome) => string): Promise<AlignedRow> {
    try {
      const written = plain && await this.writer.alignPlain(plain, origin);
      if (written) {
        const row = rowOf(deviceId, written.generation, written.hash);
        return { row: plain.plain?.online ? row : { ...row, ...OFFLINE }, fresh: true };
      }
      const outcome = await this.writer.align(deviceId, origin);
      return { row: outcome ? startRow(deviceId, outcome, whyUnchanged(outcome)) : failedRow(deviceId, 'the registry no longer knows the device'), fresh: false };
    } catch (error) {
      if (error instanceof RegistryDataError) return { row: failedRow(deviceId, error.message), fresh: false };
      throw error;
    }
  }

  /** Devices a change is for now. Throws NotFoundError for a device nobody has seen. */
  async targets(target: Target): Promise<DeviceRecord[]> {
    return target.t === 'device' ? [await this.target(target.deviceId)] : among(target, await this.registry.devices.readAllWithoutTelemetry());
  }

  /** The same, no more of each than a change that takes effect at once asks for: a third of the cost, and less where it is for all. */
  async subjects(target: Target): Promise<FleetSubject[]> {
    if (target.t === 'all') return this.registry.devices.fleetSubjects();
    const devices = target.t === 'device' ? [await this.target(target.deviceId)] : among(target, await this.registry.devices.changeSubjects());
    return devices.map(({ id, model }) => ({ id, model, plain: null }));
  }

  private async target(deviceId: string): Promise<DeviceRecord> {
    const device = await this.registry.devices.read(deviceId);
    if (!device) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
    return device;
  }

  /** For a clearing change: whether there was a pin; true for a setting one. */
  private async applyPin(target: Target, change: Change, why: string, devices: readonly FleetSubject[]): Promise<boolean> {
    const place = pinPlace(target);
    const pin = pinValue(change, why, devices);
    if (!pin) return this.registry.pins.clear(place, pinField(change));
    await this.registry.pins.set(place, pinField(change), pin);
    return true;
  }

  /** Brings each device in line, and from the first on hears what becomes of them. */
  private async follow(what: string, origin: string, timeoutMs: number, ids: readonly string[], align: (id: string) => Promise<AlignedRow>): Promise<RolloutFollower> {
    const heard: Heard = new Map();
    const stopHearing = this.registry.events.on((event) => { if (event.kind === 'device') heard.set(event.deviceId, event.runs); });
    try {
      const aligned = await inChunks(ids, align);
      for (const { row, fresh } of aligned) if (!fresh && !heard.has(row.deviceId)) heard.set(row.deviceId, undefined);
      return await this.followRows(what, origin, aligned.map(({ row }) => row), timeoutMs, heard);
    } finally {
      stopHearing();
    }
  }

  private async followRows(what: string, origin: string, rows: RolloutRow[], timeoutMs: number, heard: Heard): Promise<RolloutFollower> {
    const nowMs = Date.now();
    const rollout: RolloutRecord = {
      id: `ro-${nowMs.toString(36)}-${randomBytes(4).toString('hex')}`, what, origin, createdMs: nowMs, deadlineMs: nowMs + timeoutMs, state: 'running', rows,
    };
    await this.registry.rollouts.put(rollout);
    this.log.info({ rolloutId: rollout.id, what, origin, devices: rows.length }, 'rollout started');
    this.observer.rolloutStarted();
    const follower = new RolloutFollower(rollout, heard, this.registry, this.log);
    this.followers.add(follower);
    follower.finished.then((finished) => finished.state, () => 'abandoned' as const).then((state) => {
      this.followers.delete(follower);
      this.observer.rolloutEnded(state);
      const open = follower.current.rows.filter((row) => !['applied', 'unchanged'].includes(row.state));
      this.log.info({ rolloutId: rollout.id, state, notApplied: open.slice(0, 20).map((row) => `${row.deviceId}: ${row.state}`) }, 'rollout ended');
    });
    return follower;
  }
}

function among<T extends Pick<ChangeSubject, 'labels'>>(target: Exclude<Target, { t: 'device' }>, devices: T[]): T[] {
  return target.t === 'all' ? devices : devices.filter(({ labels }) => selectorMatches(target.selector, labels));
}

function failedRow(deviceId: string, reason: string): RolloutRow {
  return { deviceId, state: 'failed', generation: 0, hash: '', reason };
}

function rowOf(deviceId: string, generation: bigint, hash: string): RolloutRow {
  return { deviceId, state: 'pending', generation: Number(generation), hash, reason: '' };
}

function startRow(deviceId: string, outcome: DesiredOutcome, unchanged: string): RolloutRow {
  const { device, written, hash } = outcome;
  const generation = Number(outcome.generation);
  if (outcome.held) return failedRow(deviceId, HELD_TEXT);
  const row = rowOf(deviceId, outcome.generation, hash);
  if (!written && (generation === 0 || runs(device, hash, generation))) return { ...row, state: 'unchanged', reason: unchanged };
  const refused = !written && speaksOf(device.reported, outcome.generation, hash) && device.reported.state === SpecState.SPEC_STATE_FAILED;
  return refused ? { ...row, state: 'failed', reason: device.reported?.reason || 'the device gave no reason' } : row;
}

function whyUnchanged(outcome: DesiredOutcome, change: Change, place: string, pinFound: boolean): string {
  if (!pinFound) return `there was no ${place === 'fleet' ? 'fleet' : place} pin to clear`;
  const won = outcome.effective.sources.find((source) => specFields(change).includes(source.field));
  const text = won ? layerText(won) : 'default';
  return text.startsWith(`${place} pin`) || text === 'learner' || text === 'default' ? `it runs this already (${text})` : `the ${text} stands`;
}

/** Throws InvalidRequestError where the model of a target cannot take the change. */
export function checkFits(change: Change, devices: readonly Pick<FleetSubject, 'id' | 'model'>[]): void {
  checkCapacity(change, devices);
  checkLayerLists(change, devices);
}

/** A capacity below top-K would starve every token; one above the number of experts is a mistake. */
function checkCapacity(change: Change, devices: readonly Pick<FleetSubject, 'id' | 'model'>[]): void {
  if (change.t !== 'setCapacity') return;
  for (const { id, model } of devices) {
    if (!model || (change.capacity >= model.topK && change.capacity <= model.experts)) continue;
    throw new InvalidRequestError('set_cache.capacity', change.capacity,
      `from ${model.topK} (top-K) to ${model.experts} (experts), as the model of device ${id} needs`);
  }
}

/** A list has one value per layer with experts, so it fits some models and no others. */
function checkLayerLists(change: Change, devices: readonly Pick<FleetSubject, 'id' | 'model'>[]): void {
  if (change.t !== 'setRouting') return;
  for (const [field, list] of [['set_routing.lambdas', change.routing.lambdas], ['set_routing.top_js', change.routing.topJs]] as const) {
    for (const { id, model } of devices) {
      if (!list || !model || model.moeLayers.length === list.length) continue;
      throw new InvalidRequestError(field, `${list.length} values`, `one value, or one per layer with experts, of which the model of device ${id} has ${model.moeLayers.length}`);
    }
  }
}
