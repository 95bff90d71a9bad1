/**
 * What the learner proposes goes out as a staged rollout of its own layer: the proposals lie in the rows, each device of a
 * stage gets its own, and the measured gate takes all of them back where it fails. The learner says the same at every tick,
 * so what is under way, or was taken back a while ago, is no news; a proposal that differs takes its device out of the
 * rollout that has it, which goes on with the others. A value that a pin hides is kept at once: it changes nothing until
 * the pin goes.
 */
import { Proposal, routingText } from '@moefleet/proto';
import { NotAllowedNowError, NotFoundError } from '../errors';
import type { AuditInput } from '../registry/audit-store';
import { inChunks } from '../registry/chunks';
import type { DeviceRecord } from '../registry/device-record';
import type { Registry } from '../registry/registry';
import { isOver, isTaken, type StagedRollout, type StagedRow } from '../registry/staged-rollout';
import type { StagedValue } from '../registry/staged-value';
import { learnedChoice } from './effective-spec';
import { killText } from './kill-text';
import { newRow, plannedRollout, plannedRow, proposalOf, staged } from './planned-rollout';
import type { StagedRollouts } from './staged-rollouts';
import { MOST_AT_ONCE, planStages } from './stage-plan';

export interface LearnerStaging {
  /** as of --stages; '': the default for that many devices */
  readonly stages: string;
  /** null: DEFAULT_SOAK_MS where there is more than one stage, else none */
  readonly soakMs: number | null;
  readonly gate: string;
}

const DEFAULT_SOAK_MS = 60_000;
const DEADLINE_MS = 600_000;
/** A value that was taken back is not tried again for so long: the learner would propose it at its next tick. */
const REFUSED_MS = 24 * 3_600_000;
/** Of the stage's devices, where there are many; a fleet is never without a device that fails. */
const MOST_UNAVAILABLE_SHARE = 0.1;

/** The learner's specs are about both. */
const FIELDS = ['lambda', 'capacities'];

interface Candidate { device: DeviceRecord; proposal: Proposal }
/** A device in a rollout that is under way. */
interface UnderWay { rolloutId: string; row: StagedRow; learner: boolean }

export class LearnerRollouts {
  constructor(private readonly registry: Registry, private readonly rollouts: StagedRollouts, private readonly staging: LearnerStaging, private readonly now: () => number) {}

  /** Stores what the learner says and rolls out what is new; null where nothing is. */
  async propose(proposals: readonly Proposal[], who: string): Promise<StagedRollout | null> {
    const { devices, pins, audit } = this.registry;
    const shared = await pins.shared();
    if (shared.kill) throw new NotAllowedNowError(killText(shared.kill));
    const candidates = await this.candidates(proposals);
    const underWay = await this.underWay();
    const news = candidates.filter((candidate) => underWay.get(candidate.device.id)?.learner !== false && !same(this.aim(candidate, underWay), candidate.proposal));
    if (news.length === 0) return null;
    return audit.around(entryOf(who, news.map((candidate) => ({ ...candidate, before: this.aim(candidate, underWay) }))), async () => {
      const former = (id: string) => underWay.get(id)?.rolloutId;
      const changing = news.filter(({ device, proposal }) => !same(device.learned, proposal));
      const value = (rolloutId: string): StagedValue => ({ rolloutId, field: 'lambda', layer: { t: 'learner' }, pin: null });
      const drawn = changing.map(({ device, proposal }) => {
        const before: DeviceRecord = { ...device, marks: new Map([...device.marks].filter(([id]) => id !== former(device.id))) };
        return { device: before, proposal, row: plannedRow(before, value('planned'), FIELDS, proposal, shared) };
      });
      for (const id of new Set(news.flatMap(({ device }) => former(device.id) ?? []))) {
        await this.rollouts.release(id, new Set(news.filter(({ device }) => former(device.id) === id).map(({ device }) => device.id)), 'a newer proposal of the learner\'s');
      }
      await inChunks(drawn.filter(({ row }) => row.unchanged !== ''), ({ proposal }) => devices.putLearned(proposal));
      const left = drawn.filter(({ row }) => row.unchanged === '');
      return left.length > 0 ? this.start(left) : null;
    });
  }

  private start(drawn: readonly (Candidate & { row: ReturnType<typeof plannedRow> })[]): Promise<StagedRollout> {
    const what = `learner's values on ${drawn.length === 1 ? `device ${drawn[0]!.device.id}` : `${drawn.length} devices`}`;
    const stages = planStages(this.staging.stages, drawn.length);
    const maxUnavailable = drawn.length > MOST_AT_ONCE ? Math.ceil(MOST_UNAVAILABLE_SHARE * drawn.length) : 0;
    const soakMs = this.staging.soakMs ?? (stages.length > 1 ? DEFAULT_SOAK_MS : 0);
    const of = new Map(drawn.map((one) => [one.device.id, one]));
    const rows = staged(stages, what, drawn).map((row): StagedRow => {
      const { proposal, device } = of.get(row.deviceId)!;
      return { ...newRow(row), proposal: bytesOf(proposal), previous: device.learned ? bytesOf(device.learned) : '' };
    });
    const rollout = plannedRollout({ ...this.staging, soakMs, maxUnavailable, deadlineMs: DEADLINE_MS }, stages,
      { what, who: 'learner', why: drawn[0]!.proposal.reason, field: 'lambda', layer: { t: 'learner' }, pin: null, previousPin: null });
    return this.rollouts.launch(rollout, rows);
  }

  /** Proposals for what their device runs, without those that were taken back; what each says is kept for whoever asks. */
  private async candidates(proposals: readonly Proposal[]): Promise<Candidate[]> {
    const { devices } = this.registry;
    const known = new Set(await devices.ids());
    const missing = proposals.find(({ deviceId }) => !known.has(deviceId));
    if (missing) throw new NotFoundError(`device ${missing.deviceId} is not known; list the devices again`);
    const records = new Map((await devices.readSomeWithoutTelemetry(proposals.map(({ deviceId }) => deviceId))).map((device) => [device.id, device]));
    const found = await inChunks(proposals, async (proposal): Promise<Candidate[]> => {
      const device = records.get(proposal.deviceId);
      const refused = device && this.refusal(device, proposal);
      await devices.putOutcome(refused ? { ...proposal, proposed: false, reason: refused } : proposal);
      return device && proposal.proposed && !refused && device.model?.hash === proposal.modelHash ? [{ device, proposal }] : [];
    });
    return found.flat();
  }

  private refusal({ refused }: DeviceRecord, proposal: Proposal): string | null {
    if (!refused || !proposal.proposed || !same(refused, proposal)) return null;
    const agoMs = this.now() - Number(refused.timeMs);
    if (agoMs >= REFUSED_MS) return null;
    return `${routingText(proposal)} was tried and taken back at ${new Date(Number(refused.timeMs)).toISOString()} (${refused.reason}); not tried again within a day`;
  }

  /** By device; of a device in a rollout of an operator's the learner waits for its end. */
  private async underWay(): Promise<Map<string, UnderWay>> {
    const { stagedRollouts } = this.registry;
    const active = (await Promise.all((await stagedRollouts.active()).map((id) => stagedRollouts.read(id)))).filter((rollout) => rollout !== null);
    const found = new Map<string, UnderWay>();
    for (const rollout of active.filter((one) => !isOver(one) && one.state !== 'rolling_back' && ['lambda', 'cache'].includes(one.field))) {
      const learner = rollout.layer.t === 'learner';
      for (const row of await stagedRollouts.rows(rollout.id)) {
        if (row.stage > 0 && !isTaken(row) && found.get(row.deviceId)?.learner !== false) found.set(row.deviceId, { rolloutId: rollout.id, row, learner });
      }
    }
    return found;
  }

  /** What the device has of the learner's, or is about to get. */
  private aim({ device, proposal }: Candidate, underWay: ReadonlyMap<string, UnderWay>): Proposal | undefined {
    const row = underWay.get(device.id)?.row;
    const next = row && proposalOf(row)?.proposal;
    return next?.modelHash === proposal.modelHash ? next : device.learned;
  }
}

function entryOf(who: string, changed: readonly (Candidate & { before: Proposal | undefined })[]): AuditInput {
  const ids = changed.map(({ device }) => device.id);
  return {
    who, what: `learner's values on ${ids.length === 1 ? `device ${ids[0]}` : `${ids.length} devices`}`, why: changed[0]!.proposal.reason, subject: { t: 'devices', ids },
    before: Object.fromEntries(changed.map(({ device, before }) => [device.id, before ? valuesOf(before) : null])),
    after: Object.fromEntries(changed.map(({ device, proposal }) => [device.id, valuesOf(proposal)])),
  };
}

function valuesOf(proposal: Proposal) {
  return { ...learnedChoice(proposal), capacities: proposal.capacities };
}

function same(a: Proposal | undefined, b: Proposal): boolean {
  return a !== undefined && a.modelHash === b.modelHash && JSON.stringify(valuesOf(a)) === JSON.stringify(valuesOf(b));
}

function bytesOf(proposal: Proposal): string {
  return Buffer.from(Proposal.encode(proposal).finish()).toString('base64');
}
