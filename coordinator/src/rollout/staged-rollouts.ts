/**
 * Changes that reach their targets in stages. Plans and starts them, takes operators' orders, and runs their steps: reads
 * what a step needs, lets rollout-step.ts decide, writes the outcome by compare-and-set, and makes it so. All state is in
 * the registry, so any coordinator may run the next step, and one that dies in the middle of one leaves nothing behind
 * that the next would not put right.
 */
import { DeviceSpec, Measure } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { InvalidRequestError, NotAllowedNowError, NotFoundError, RegistryDataError } from '../errors';
import { inChunks } from '../registry/chunks';
import { type DeviceRecord, specHash } from '../registry/device-record';
import { hasEnded, type PinByField, type PinField } from '../registry/pin';
import type { SharedPins } from '../registry/pin-store';
import type { Registry } from '../registry/registry';
import { isOver, isTaken, type StagedRollout, type StagedRow } from '../registry/staged-rollout';
import type { StagedLayer, StagedValue } from '../registry/staged-value';
import { type Change, describeChange, describeTarget, describeValue, pinField, pinPlace, specFields, targetOf, type Target } from './change';
import { specInputs } from './desired-writer';
import { effectiveSpec } from './effective-spec';
import { type Gate, needsSpeed, parseGates } from './gate';
import { killText } from './kill-text';
import { pinValue } from './pin-value';
import { newRow, type PlannedRow, plannedRollout, plannedRow, proposalOf, proposalsOf, staged, type Staging } from './planned-rollout';
import { releaseRows } from './release-rows';
import { checkFits, type RolloutEngine } from './rollout-engine';
import { measureId, resumed, type Sight, stepRollout, takeBack, wantsMark } from './rollout-step';
import { planStages, type StageBound } from './stage-plan';

export interface RolloutPlan { what: string; stages: StageBound[]; gates: string[]; rows: PlannedRow[]; supersedes: string[] }

/** Sees to it that a step of the rollout is run soon. */
export type WakeRollout = (id: string) => Promise<void>;

/** Losing more often means that someone writes in a loop. */
const MOST_TRIES = 50;
const FIRST_TOKENS = 2048;
const SPEED_TOKENS = 64;
const SPEED_PROMPT_CHARACTERS = 400;
/** Until the next step: while devices apply, and while there is nothing to do but wait. */
const SOON_MS = 200;
const LATER_MS = 500;
/** A step of a large fleet takes its time; the next waits a multiple of it, so that Redis has room for others. */
const REST_FACTOR = 3;

export class StagedRollouts {
  /** `text`: what devices measure their quality on. */
  constructor(private readonly registry: Registry, private readonly engine: RolloutEngine, private readonly text: string, private readonly wake: WakeRollout, private readonly log: Logger) {}

  async plan(target: Target, change: Change, why: string, staging: Staging): Promise<RolloutPlan> {
    const { rows, stages, what } = await this.draw(target, change, why, staging);
    const changing = new Set(rows.filter((row) => row.stage > 0).map((row) => row.deviceId));
    const supersedes = (await this.overlapping(pinField(change), changing)).map(({ id }) => id);
    return { what, stages, gates: parseGates(staging.gate).map((gate) => gate.text), rows, supersedes };
  }

  async start(target: Target, change: Change, why: string, who: string, staging: Staging): Promise<StagedRollout> {
    const { rows, stages, what, pin, shared, devices } = await this.draw(target, change, why, staging);
    const field = pinField(change);
    if (shared.kill && field === 'lambda') throw new NotAllowedNowError(killText(shared.kill));
    const layer = pinPlace(target);
    const rollout = plannedRollout(staging, stages, {
      what, who, why, field, layer, pin: pin && { ...pin, order: await this.registry.pins.nextOrder() } as PinByField[PinField],
      previousPin: standing(layer, field, shared, devices) ?? null,
    });
    await this.supersede(field, new Set(rows.filter((row) => row.stage > 0).map((row) => row.deviceId)), rollout.id);
    return this.launch(rollout, rows.map((row) => newRow(row)));
  }

  /** Stores one that is planned, and sees to it that it begins. */
  async launch(rollout: StagedRollout, rows: readonly StagedRow[]): Promise<StagedRollout> {
    const { id, what, who, stages } = rollout;
    const stored = await this.registry.stagedRollouts.write(rollout, rows);
    if (!stored) throw new RegistryDataError(`rollout ${id}`, 'it exists already');
    this.log.info({ rolloutId: id, what, who, devices: rows.length, stages: stages.map((stage) => stage.asked) }, 'staged rollout stored');
    await this.wake(id);
    return stored;
  }

  async get(id: string): Promise<{ rollout: StagedRollout; rows: StagedRow[] }> {
    const rollout = await this.registry.stagedRollouts.read(id);
    if (!rollout) throw new NotFoundError(`rollout ${id} is not known; list them with: moefleet rollout list`);
    return { rollout, rows: await this.registry.stagedRollouts.rows(id) };
  }

  pause(id: string, why: string): Promise<StagedRollout> {
    return this.order(id, ({ rollout }) => {
      if (!['planned', 'running'].includes(rollout.state)) throw refused(rollout, 'paused');
      return { rollout: { ...rollout, state: 'paused', reason: why || 'paused by an operator' }, rows: [] };
    });
  }

  async resume(id: string): Promise<StagedRollout> {
    const { kill } = await this.registry.pins.shared();
    if (kill) throw new NotAllowedNowError(killText(kill));
    return this.order(id, ({ rollout, rows }) => {
      if (rollout.state !== 'paused' && rollout.state !== 'inconclusive') throw refused(rollout, 'resumed');
      return resumed(rollout, rows, Date.now());
    });
  }

  rollback(id: string, why: string): Promise<StagedRollout> {
    return this.order(id, ({ rollout }) => {
      if (['rolling_back', 'rolled_back', 'superseded'].includes(rollout.state)) throw refused(rollout, 'rolled back');
      return { rollout: takeBack(rollout, why || 'rolled back by an operator', Date.now()), rows: [] };
    });
  }

  /**
   * Ends rollouts of the same field on any of these devices; their devices go back to what the layers say. Of the learner's
   * it takes these devices alone: each has a value of its own there, where an operator's is for all or for none.
   */
  async supersede(field: PinField, deviceIds: ReadonlySet<string>, by: string): Promise<void> {
    for (const { id, layer } of await this.overlapping(field, deviceIds)) {
      if (layer.t === 'learner') await this.release(id, deviceIds, by);
      else await this.order(id, ({ rollout }) => ({ rollout: isOver(rollout) ? rollout : endedBy(rollout, by), rows: [] }));
    }
  }

  /** Takes these devices out of a rollout of the learner's, which goes on with the others. */
  async release(id: string, deviceIds: ReadonlySet<string>, by: string): Promise<void> {
    await this.order(id, ({ rollout, rows }) => {
      if (isOver(rollout) || rollout.state === 'rolling_back') return { rollout, rows: [] };
      // Its values are becoming the devices' own at this moment; which of them have, only a rollback of all knows to undo.
      if (rollout.promoted) return { rollout: endedBy(rollout, by), rows: [] };
      return releaseRows(rollout, rows, deviceIds, by, Date.now());
    });
  }

  /** Pauses all that run. */
  async haltAll(reason: string): Promise<void> {
    for (const id of await this.registry.stagedRollouts.active()) {
      await this.order(id, ({ rollout }) => ({ rollout: ['planned', 'running'].includes(rollout.state) ? { ...rollout, state: 'paused', reason } : rollout, rows: [] }));
    }
  }

  /** Takes back what has not ended when the time of its value is over. */
  async expire(nowMs: number): Promise<void> {
    const over = (rollout: StagedRollout) => rollout.pin !== null && hasEnded(rollout.pin, nowMs) && !isOver(rollout) && rollout.state !== 'rolling_back';
    for (const id of await this.registry.stagedRollouts.active()) {
      const found = await this.registry.stagedRollouts.read(id);
      if (!found || !over(found)) continue;
      await this.order(id, ({ rollout }) => ({ rollout: over(rollout) ? takeBack(rollout, 'the time that was set for its value is over', nowMs) : rollout, rows: [] }));
    }
  }

  /** Milliseconds until the next step is due; null where nothing is to be done until an operator says so, or ever. */
  async step(id: string): Promise<number | null> {
    const begunMs = Date.now();
    const { stagedRollouts, pins } = this.registry;
    const found = await stagedRollouts.read(id);
    if (!found || isOver(found)) return null;
    const now = await this.letGo(found, await stagedRollouts.rows(id));
    if (!now) return this.lost(id);
    const { rollout, rows } = now;
    if (rollout.state === 'paused' || rollout.state === 'inconclusive') return null;
    if (rollout.state === 'rolling_back') await this.takeValueBack(rollout);
    if (rollout.state === 'planned') await pins.stage(valueOf(rollout));
    const shared = await pins.shared();
    const sights = new Map(await inChunks(rows.filter((row) => concerns(rollout, row)), async (row) => [row.deviceId, await this.look(rollout, row, shared)] as const));
    const gates = parseGates(rollout.gates.join(','));
    const step = stepRollout(rollout, rows, { sights, gates, halted: shared.kill ? killText(shared.kill) : null, nowMs: Date.now() });
    let next = step.rollout;
    if (step.promote) {
      // Told first, so that a rollback knows of a promotion that was cut off in the middle.
      const noted = await stagedRollouts.write({ ...rollout, promoted: true }, []);
      if (!noted) return this.lost(id);
      await this.promote(noted, rows);
      next = { ...next, promoted: true, revision: noted.revision };
    }
    const changed = step.rows.filter((row, at) => row !== rows[at] && JSON.stringify(row) !== JSON.stringify(rows[at]));
    if (next !== rollout || changed.length > 0) {
      if (!await stagedRollouts.write(next, changed)) return this.lost(id);
      await this.tell(rollout, next);
    }
    await this.makeSo(next, step.rows, sights, gates);
    if (isOver(next)) return null;
    return Math.max(next.phase === 'judging' ? LATER_MS : SOON_MS, REST_FACTOR * (Date.now() - begunMs));
  }

  /** Takes its mark off devices that a newer change has taken; null where someone else has written meanwhile. */
  private async letGo(rollout: StagedRollout, rows: readonly StagedRow[]): Promise<{ rollout: StagedRollout; rows: readonly StagedRow[] } | null> {
    const leaving = rows.filter(({ state }) => state === 'leaving');
    if (leaving.length === 0) return { rollout, rows };
    await inChunks(leaving, async ({ deviceId }) => {
      await this.registry.pins.unmark(deviceId, rollout.id);
      if (await this.readDevice(deviceId)) await this.engine.writer.align(deviceId, `rollout ${rollout.id}: superseded`);
    });
    const gone = new Map(leaving.map((row): [string, StagedRow] => [row.deviceId, { ...row, state: 'superseded' }]));
    const stored = await this.registry.stagedRollouts.write(rollout, [...gone.values()]);
    if (!stored) return null;
    this.log.info({ rolloutId: rollout.id, devices: gone.size, of: rows.length }, 'devices of a rollout belong to a newer change');
    return { rollout: stored, rows: rows.map((row) => gone.get(row.deviceId) ?? row) };
  }

  /** The value becomes its layer's; may be repeated. */
  private async promote(rollout: StagedRollout, rows: readonly StagedRow[]): Promise<void> {
    if (rollout.layer.t === 'learner') await inChunks(proposalsOf(rows.filter(({ state }) => state !== 'failed')), ({ proposal }) => this.registry.devices.putLearned(proposal));
    await this.registry.pins.promote(valueOf(rollout));
  }

  /** Someone else has written since: a value that was staged for a rollout that has ended must not stay. */
  private async lost(id: string): Promise<number | null> {
    const now = await this.registry.stagedRollouts.read(id);
    if (!now || isOver(now)) await this.registry.pins.unstage(id);
    return now && !isOver(now) ? 0 : null;
  }

  private async draw(target: Target, change: Change, why: string, staging: Staging) {
    const devices = await this.engine.targets(target);
    checkFits(change, devices);
    const shared = await this.registry.pins.shared();
    const pin = pinValue(change, why, devices);
    const field = pinField(change);
    const what = describeChange(change, target);
    const value: StagedValue = { rolloutId: 'planned', field, layer: pinPlace(target), pin: pin && { ...pin, order: Number.MAX_SAFE_INTEGER } as PinByField[PinField] };
    const drawn = devices.map((device) => ({ device, row: plannedRow(device, value, specFields(change), null, shared) }));
    const changing = drawn.filter(({ row }) => row.unchanged === '');
    if (devices.length === 0) throw new InvalidRequestError('target', what, 'one that matches any device now; to set a value for devices that join later, use --now');
    const stages = planStages(staging.stages, changing.length);
    const rows = staged(stages, describeValue(change, describeTarget(target)), drawn);
    return { rows, stages, what, pin, shared, devices };
  }

  private async overlapping(field: PinField, deviceIds: ReadonlySet<string>): Promise<StagedRollout[]> {
    const found = await Promise.all((await this.registry.stagedRollouts.active()).map((id) => this.registry.stagedRollouts.read(id)));
    const same = found.filter((rollout) => rollout !== null).filter((rollout) => !isOver(rollout) && rollout.state !== 'rolling_back' && rollout.field === field);
    const rows = await Promise.all(same.map(({ id }) => this.registry.stagedRollouts.rows(id)));
    return same.filter((_, at) => rows[at]!.some((row) => row.stage > 0 && !isTaken(row) && deviceIds.has(row.deviceId)));
  }

  private async order(id: string, decide: (now: { rollout: StagedRollout; rows: StagedRow[] }) => { rollout: StagedRollout; rows: readonly StagedRow[] }): Promise<StagedRollout> {
    for (let attempt = 0; attempt < MOST_TRIES; attempt += 1) {
      const now = await this.get(id);
      const next = decide(now);
      if (next.rollout === now.rollout) return now.rollout;
      const stored = await this.registry.stagedRollouts.write(next.rollout, next.rows);
      if (!stored) continue;
      if (stored.state === 'rolling_back') await this.takeValueBack(stored);
      await this.tell(now.rollout, stored);
      await this.wake(id);
      return stored;
    }
    throw new RegistryDataError(`rollout ${id}`, `it was changed by others ${MOST_TRIES} times in a row`);
  }

  /** Voids the marks, and where the rollout had been promoted puts back what its layer held before. */
  private async takeValueBack(rollout: StagedRollout): Promise<void> {
    const { pins, devices, stagedRollouts } = this.registry;
    await pins.unstage(rollout.id);
    const { layer, field, pin, previousPin, promoted = false } = rollout;
    if (layer.t === 'learner') {
      if (promoted) await inChunks(proposalsOf(await stagedRollouts.rows(rollout.id)), ({ proposal, previous }) => devices.restoreLearned(proposal, previous));
      return;
    }
    const device = layer.t === 'device' ? await devices.read(layer.deviceId) : null;
    const now = standing(layer, field, await pins.shared(), device ? [device] : []);
    // Of a rollout that has cleared its layer nothing is there that could be told by its order.
    const itsOwn = pin ? now?.order === pin.order : promoted && now === undefined;
    if (itsOwn) await pins.promote({ rolloutId: rollout.id, field, layer, pin: previousPin }, true);
  }

  private async look(rollout: StagedRollout, row: StagedRow, shared: SharedPins): Promise<Sight> {
    const device = await this.readDevice(row.deviceId);
    if (!device) return { device, wantedHash: '', wantsNothing: true, answer: null };
    const spec = Buffer.from(DeviceSpec.encode(effectiveSpec(specInputs(device, shared)).spec).finish());
    const asked = measureId(rollout, row);
    const answer = asked === null ? null : await this.registry.measures.answered(row.deviceId, asked);
    return { device, wantedHash: specHash(spec), wantsNothing: spec.length === 0, answer };
  }

  /** A device whose values in Redis are damaged counts as lost. */
  private async readDevice(id: string): Promise<DeviceRecord | null> {
    try {
      return await this.registry.devices.read(id);
    } catch (error) {
      if (error instanceof RegistryDataError) return null;
      throw error;
    }
  }

  private async makeSo(rollout: StagedRollout, rows: readonly StagedRow[], sights: ReadonlyMap<string, Sight>, gates: readonly Gate[]): Promise<void> {
    const origin = `rollout ${rollout.id}: ${rollout.state === 'rolling_back' ? 'rolled back' : rollout.what}`;
    await inChunks(rows.filter((row) => concerns(rollout, row)), async (row) => {
      const sight = sights.get(row.deviceId);
      if (rollout.state === 'running') await this.mark(rollout, row, sight, origin);
      if (row.state === 'reverting') await this.unmark(rollout, row, sight, origin);
      await this.measure(rollout, row, gates);
    });
    if (!isOver(rollout)) return;
    await inChunks(rows.filter((row) => row.stage > 0), (row) => this.registry.pins.unmark(row.deviceId, rollout.id));
    await this.settle(rollout, rows, origin);
    await this.registry.pins.unstage(rollout.id);
  }

  private async settle(rollout: StagedRollout, rows: readonly StagedRow[], origin: string): Promise<void> {
    const { layer, state, reason } = rollout;
    if (layer.t === 'learner') {
      // What was tried in vain on some is not to be tried on each of the others in turn.
      if (state === 'rolled_back') await inChunks(proposalsOf(rows), ({ proposal }) => this.registry.devices.putRefused({ ...proposal, reason, timeMs: BigInt(Date.now()) }));
      return;
    }
    // Those that have joined since, or match only now.
    if (state === 'done') await inChunks(await this.engine.targets(targetOf(layer)), ({ id }) => this.engine.writer.align(id, origin));
  }

  private async mark(rollout: StagedRollout, row: StagedRow, sight: Sight | undefined, origin: string): Promise<void> {
    if (!wantsMark(row) || row.stage > rollout.stage || !sight?.device) return;
    const marked = sight.device.marks.has(rollout.id);
    const { desired } = sight.device;
    if (marked && (desired.t === 'set' ? desired.hash === sight.wantedHash : sight.wantsNothing)) return;
    if (!marked) await this.registry.pins.mark(row.deviceId, rollout.id, proposalOf(row)?.proposal ?? null);
    await this.engine.writer.align(row.deviceId, origin);
  }

  private async unmark(rollout: StagedRollout, row: StagedRow, sight: Sight | undefined, origin: string): Promise<void> {
    if (sight?.device?.marks.has(rollout.id)) await this.registry.pins.unmark(row.deviceId, rollout.id);
    await this.engine.writer.align(row.deviceId, origin);
  }

  private async measure(rollout: StagedRollout, row: StagedRow, gates: readonly Gate[]): Promise<void> {
    const id = measureId(rollout, row);
    if (id === null) return;
    const { measures, events } = this.registry;
    if (!await measures.asked(row.deviceId, id)) await measures.ask(row.deviceId, id, this.request(gates, row.tries));
    // Said again at every step, in case it was lost or the device has come back meanwhile.
    events.emit({ kind: 'measure', deviceId: row.deviceId });
  }

  private request(gates: readonly Gate[], tries: number): Measure {
    const speed = needsSpeed(gates);
    return Measure.fromPartial({
      text: this.text, textTokens: FIRST_TOKENS * 2 ** (tries - 1), context: 0,
      ...(speed ? { prompts: [this.text.slice(0, SPEED_PROMPT_CHARACTERS)], tokensPerPrompt: SPEED_TOKENS } : {}),
    });
  }

  private async tell(from: StagedRollout, to: StagedRollout): Promise<void> {
    if (from.state === to.state && from.stage === to.stage && from.phase === to.phase) return;
    this.log.info({ rolloutId: to.id, from: from.state, to: to.state, stage: to.stage, phase: to.phase, reason: to.reason }, 'rollout has moved');
    if (from.state === to.state) return;
    await this.registry.audit.record({ who: `rollout ${to.id}`, what: `${to.what}: ${to.state.replace('_', ' ')}`, why: to.reason, before: from.state, after: to.state });
  }
}

function valueOf({ id, field, layer, pin }: StagedRollout): StagedValue {
  return { rolloutId: id, field, layer, pin };
}

/** Whether a step looks at the device. */
function concerns(rollout: StagedRollout, row: StagedRow): boolean {
  if (row.stage === 0 || isTaken(row)) return false;
  return rollout.state === 'rolling_back' ? wantsMark(row) || row.state === 'reverting' : row.stage <= rollout.stage && (row.stage === rollout.stage || row.state === 'offline');
}

function endedBy(rollout: StagedRollout, by: string): StagedRollout {
  return takeBack(rollout, `superseded by ${by}`, Date.now(), 'superseded');
}

function standing(layer: StagedLayer, field: PinField, shared: SharedPins, devices: readonly DeviceRecord[]): PinByField[PinField] | undefined {
  switch (layer.t) {
    case 'fleet': return shared.fleet[field];
    case 'group': return shared.groups.find((group) => group.selector === layer.selector)?.pins[field];
    case 'device': return devices.find((device) => device.id === layer.deviceId)?.pins[field];
    case 'learner': return undefined;
  }
}

function refused(rollout: StagedRollout, verb: string): NotAllowedNowError {
  return new NotAllowedNowError(`rollout ${rollout.id} is ${rollout.state.replace('_', ' ')} and cannot be ${verb}; look at it with: moefleet rollout show ${rollout.id}`);
}
