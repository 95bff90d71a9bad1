/**
 * Devices in Redis: leases, what they report, what they shall run. The session that holds a device's lease writes its
 * state, fenced, so that a stream that has been replaced cannot overwrite its successor. Desired is written by
 * compare-and-set alone.
 */
import { DeviceInfo, ModelState, Proposal, Reported } from '@moefleet/proto';
import type { Labels, Logger } from '@moefleet/runtime';
import { ClonedDeviceError, DeviceRefusedError, RegistryDataError } from '../errors';
import { isId } from '../names';
import { inChunks } from './chunks';
import {
  type ChangeSubject, decodeChangeSubject, decodeCount, decodeDesired, decodeDevice, decodeFleetSubject, decodeProgress, decodeSpecSubject, type DesiredRecord, type DeviceProgress, type DeviceRecord,
  type FleetSubject, highestReported, type RawDevice, type RawHash, refusedField, specHash, type SpecSubject,
} from './device-record';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export interface LeaseRequest { installId: string; bootId: string; coordinatorId: string; hostname: string; ttlMs: number; /** of the stream's certificate; undefined: plaintext */ keyHash?: string; /** address it comes from */ peer?: string }
export interface Lease { deviceId: string; fence: bigint; request: LeaseRequest }

export type LeaseAnswer =
  | { t: 'granted'; lease: Lease; /** coordinator whose stream this one replaces, '' for none */ replaced: string }
  | { t: 'held'; installId: string; coordinatorId: string; hostname: string };

export interface StateFields {
  info?: DeviceInfo;
  reported?: Reported;
  settledGeneration?: bigint;
}

/** A boot that was replaced and came back this often within the window is no restart: the installation runs twice. */
const CLONE = { returns: 3, windowMs: 10 * 60_000 } as const;

export class DeviceStore {
  /** What was told about damaged values, so that each is logged once. */
  private readonly toldDamage = new Map<string, string>();

  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger, private readonly now: () => number = Date.now) {}

  /** Throws DeviceRefusedError and ClonedDeviceError. */
  async acquireLease(deviceId: string, request: LeaseRequest): Promise<LeaseAnswer> {
    const answer = await this.link.script(LUA.acquireLease,
      this.keys.deviceHead(deviceId),
      [request.installId, request.bootId, request.coordinatorId, request.hostname, request.ttlMs, Date.now(), request.keyHash ?? '', request.peer ?? '', CLONE.windowMs, CLONE.returns]) as unknown[];
    refuse(deviceId, answer);
    if (Number(answer[0]) === 4) throw new ClonedDeviceError(deviceId, String(answer[1]), Number(answer[2]) === 1);
    if (Number(answer[0]) === 0) {
      const [, installId, coordinatorId, hostname] = answer.map(String);
      return { t: 'held', installId: installId!, coordinatorId: coordinatorId!, hostname: hostname! };
    }
    await this.remember(deviceId);
    return { t: 'granted', lease: { deviceId, fence: BigInt(answer[1] as number), request }, replaced: String(answer[2]) };
  }

  /** The generation of desired, so that a lost wake-up is noticed; null where a newer stream has the device. Throws DeviceRefusedError. */
  async renewLease(lease: Lease): Promise<{ desiredGeneration: bigint } | null> {
    const { deviceId, fence, request } = lease;
    const head = this.keys.deviceHead(deviceId);
    const kept = await this.link.script(LUA.keepLease, head, [fence, request.ttlMs, Date.now(), request.keyHash ?? '']) as unknown[];
    const answer = Number(kept[0]) !== 0 ? kept : await this.link.script(LUA.renewLease, head,
      [fence, request.installId, request.bootId, request.coordinatorId, request.hostname, request.ttlMs, Date.now(), request.keyHash ?? '']) as unknown[];
    refuse(deviceId, answer);
    return Number(answer[0]) === 1 ? { desiredGeneration: decodeCount(answer[1] as Buffer) ?? 0n } : null;
  }

  /** `graceMs`: how long the device still counts as online; 0: no longer. */
  async releaseLease(lease: Lease, graceMs = 0): Promise<void> {
    await this.link.script(LUA.releaseLease, this.keys.deviceHead(lease.deviceId), [lease.fence, Date.now(), graceMs]);
  }

  /** Puts the device on the list of all; done at every connect, so that it survives an emptied Redis. */
  async remember(deviceId: string): Promise<void> {
    await this.link.run(this.keys.devices, (client) => client.sadd(this.keys.devices, deviceId));
  }

  /**
   * The generation of desired; null: a newer stream has the device, nothing was written. `settled` is kept only where
   * it is that generation.
   */
  writeState(lease: Lease, fields: StateFields, settled: bigint | null = null): Promise<{ desiredGeneration: bigint } | null> {
    const pairs: (string | Buffer)[] = ['lastSeenMs', String(Date.now())];
    if (fields.info) pairs.push('info', bytes(DeviceInfo.encode(fields.info)));
    if (fields.info?.model?.hash) pairs.push('model', bytes(ModelState.encode(fields.info.model)));
    if (fields.reported) pairs.push('reported', bytes(Reported.encode(fields.reported)), 'reportedGeneration', String(highestReported(fields.reported)));
    if (fields.settledGeneration !== undefined) pairs.push('settledGeneration', String(fields.settledGeneration));
    const { deviceId, fence } = lease;
    return this.link.script(LUA.writeState, this.keys.deviceHead(deviceId), [fence, settled ?? '', ...pairs]).then((answer) => {
      const [code, generation] = answer as unknown[];
      return Number(code) === 1 ? { desiredGeneration: decodeCount(generation as Buffer) ?? 0n } : null;
    });
  }

  /** Whether it has been seen, and not been removed since. */
  async knows(deviceId: string): Promise<boolean> {
    return await this.link.run(this.keys.devices, (client) => client.sismember(this.keys.devices, deviceId)) === 1;
  }

  /**
   * Forgets it, save for its identity, so that marks and the refusal of its certificate stay. What was last counted of its boots
   * stays for as long as frames may come late. One in plaintext that still runs is seen again when it next connects.
   */
  async remove(deviceId: string): Promise<void> {
    await this.link.script(LUA.removeDevice, [this.keys.fence(deviceId), ...this.keys.deviceRecord(deviceId)], []);
    for (const key of [this.keys.frame(deviceId), this.keys.ring(deviceId)]) await this.link.run(key, (client) => client.del(key));
    // Last, so that one that was cut off half-way is still there to be removed.
    await this.link.run(this.keys.devices, (client) => client.srem(this.keys.devices, deviceId));
  }

  async readDesired(deviceId: string): Promise<DesiredRecord> {
    return decodeDesired((await this.hashes([this.keys.desired(deviceId)]))[0]!);
  }

  /** null for a device nobody has seen. */
  async read(deviceId: string): Promise<DeviceRecord | null> {
    const frameKey = this.keys.frame(deviceId);
    const [frame, hashes] = await Promise.all([this.link.run(frameKey, (client) => client.getBuffer(frameKey)), this.readHashes(deviceId)]);
    return this.decode(deviceId, hashes, frame);
  }

  /**
   * What its spec is made of, and the spec it has; null for a device nobody has seen. In one step: whoever then writes
   * desired against the generation read has seen all that its writer had seen of the device.
   */
  async readSubject(deviceId: string): Promise<SpecSubject | null> {
    const { keys } = this;
    const [desired, state, pins, learned, labels] = await this.hashes(
      [keys.desired(deviceId), keys.state(deviceId), keys.devicePins(deviceId), keys.learned(deviceId), keys.labels(deviceId)]);
    if (Object.keys(state!).length === 0) return null;
    const subject = decodeSpecSubject(deviceId, { desired: desired!, state: state!, pins: pins!, learned: learned!, labels: labels! }, this.now());
    this.tellDamage(subject);
    return subject;
  }

  /** How far it has come with a spec; null for a device nobody has seen. */
  async readProgress(deviceId: string): Promise<DeviceProgress | null> {
    const found = await this.link.script(LUA.readProgress, this.keys.deviceHead(deviceId), []) as (Buffer | null)[];
    return found.length === 0 ? null : decodeProgress(found);
  }

  async ids(): Promise<string[]> {
    return (await this.link.run(this.keys.devices, (client) => client.smembers(this.keys.devices))).filter(isId).sort();
  }

  async readAll(): Promise<DeviceRecord[]> {
    return this.readSome(await this.ids());
  }

  /** All devices, as little of each as a change of settings asks for. */
  async changeSubjects(): Promise<ChangeSubject[]> {
    return this.readOrSkip(await this.ids(), (id) => this.changeSubject(id));
  }

  private async changeSubject(id: string): Promise<ChangeSubject | null> {
    const answer = await this.link.script(LUA.readChangeSubject, this.keys.deviceHead(id), []) as [Buffer | null, Buffer | null, unknown] | [];
    return answer.length === 0 ? null : decodeChangeSubject(id, answer[0], answer[1], hashOf(this.keys.labels(id), answer[2]));
  }

  /** All devices, as little of each as a change for all asks for: a fifth of the cost. */
  async fleetSubjects(): Promise<FleetSubject[]> {
    return this.readOrSkip(await this.ids(), async (id) => {
      const found = decodeFleetSubject(id, await this.link.script(LUA.readFleetSubject, this.keys.deviceHead(id), []) as Buffer[]);
      if (found) return found;
      const subject = await this.changeSubject(id);
      return subject && { id, model: subject.model, plain: null };
    });
  }

  /** All devices without telemetry. */
  async readAllWithoutTelemetry(): Promise<DeviceRecord[]> {
    return this.readSomeWithoutTelemetry(await this.ids());
  }

  /** Without those that are unknown or damaged. */
  readSome(ids: readonly string[]): Promise<DeviceRecord[]> {
    return this.readOrSkip(ids, (id) => this.read(id));
  }

  /** The same without telemetry. */
  readSomeWithoutTelemetry(ids: readonly string[]): Promise<DeviceRecord[]> {
    return this.readOrSkip(ids, (id) => this.readWithoutTelemetry(id));
  }

  /**
   * Writes the next generation; `floor` is the highest the device itself has reported. `stale`: someone else has
   * written since; read again and decide anew. `plain`: also where
   * it has settings of its own by now.
   */
  async writeDesired(deviceId: string, expected: bigint, floor: bigint, spec: Buffer, origin: string, plain = false): Promise<{ t: 'written'; generation: bigint } | { t: 'stale' }> {
    const answer = await this.link.script(LUA.writeDesired, this.keys.deviceHead(deviceId), [expected, floor, spec, specHash(spec), origin, plain ? '1' : '']) as unknown[];
    return Number(answer[0]) === 1 ? { t: 'written', generation: BigInt(String(answer[1])) } : { t: 'stale' };
  }

  /** What the learner says of the device, for whoever asks. */
  async putOutcome(proposal: Proposal): Promise<void> {
    const key = this.keys.learned(proposal.deviceId);
    await this.link.run(key, (client) => client.hset(key, 'last', bytes(Proposal.encode(proposal))));
  }

  /** The learner's value for the model it names is in force from now on. */
  async putLearned(proposal: Proposal): Promise<void> {
    const key = this.keys.learned(proposal.deviceId);
    await this.link.run(key, (client) => client.hset(key, proposal.modelHash, bytes(Proposal.encode(proposal))));
  }

  /** Puts back the value that was in force before `proposal`, or none, unless another is in force by now. */
  async restoreLearned(proposal: Proposal, previous: Proposal | null): Promise<void> {
    await this.link.script(LUA.restoreLearned, [this.keys.learned(proposal.deviceId)],
      [proposal.modelHash, bytes(Proposal.encode(proposal)), previous ? bytes(Proposal.encode(previous)) : '']);
  }

  /** The value was tried and taken back; `reason` and `timeMs` say why and when. */
  async putRefused(proposal: Proposal): Promise<void> {
    const key = this.keys.learned(proposal.deviceId);
    await this.link.run(key, (client) => client.hset(key, refusedField(proposal.modelHash), bytes(Proposal.encode(proposal))));
  }

  /** Labels of operators'. The caller has checked them. */
  async changeLabels(deviceId: string, set: Labels, remove: readonly string[]): Promise<void> {
    const key = this.keys.labels(deviceId);
    if (remove.length > 0) await this.link.run(key, (client) => client.hdel(key, ...remove));
    if (Object.keys(set).length > 0) await this.link.run(key, (client) => client.hset(key, { ...set }));
  }

  private async readOrSkip<T>(ids: readonly string[], read: (id: string) => Promise<T | null>): Promise<T[]> {
    const records = await inChunks(ids, async (id) => {
      try {
        return await read(id);
      } catch (error) {
        if (!this.link.up || !(error instanceof RegistryDataError)) throw error;
        this.tell(id, error.message);
        return null;
      }
    });
    return records.filter((record) => record !== null);
  }

  /** As `read`, without telemetry: a third of the cost. */
  private async readWithoutTelemetry(deviceId: string): Promise<DeviceRecord | null> {
    return this.decode(deviceId, await this.readHashes(deviceId), null);
  }

  private async readHashes(deviceId: string): Promise<RawHashes> {
    const { keys } = this;
    const [desired, state, lease, pins, learned, labels, identity] = await this.hashes(
      [keys.desired(deviceId), keys.state(deviceId), keys.lease(deviceId), keys.devicePins(deviceId), keys.learned(deviceId), keys.labels(deviceId), keys.identity(deviceId)]);
    return { desired: desired!, state: state!, lease: lease!, pins: pins!, learned: learned!, labels: labels!, identity: identity! };
  }

  /** All as they are at one moment. */
  private async hashes(places: readonly string[]): Promise<RawHash[]> {
    const found = await this.link.script(LUA.readHashes, places, []) as unknown[];
    return places.map((key, at) => hashOf(key, found[at]));
  }

  private decode(deviceId: string, hashes: RawHashes, frame: Buffer | null): DeviceRecord | null {
    if (Object.keys(hashes.state).length === 0) return null;
    const record = decodeDevice(deviceId, { ...hashes, frame }, this.now());
    this.tellDamage(record);
    return record;
  }

  private tellDamage(record: Pick<DeviceRecord, 'id' | 'damaged'>): void {
    if (record.damaged.length > 0) this.tell(record.id, record.damaged.join('; '));
    else this.toldDamage.delete(record.id);
  }

  private tell(deviceId: string, damage: string): void {
    if (this.toldDamage.get(deviceId) === damage) return;
    this.toldDamage.set(deviceId, damage);
    this.log.error({ deviceId, damage }, 'redis holds values that cannot be decoded; left out');
  }
}

/** Throws where a script has answered that the device may not be here. */
function refuse(deviceId: string, answer: readonly unknown[]): void {
  const code = Number(answer[0]);
  if (code === 2) throw new DeviceRefusedError(deviceId, `revoked${String(answer[1]) ? ` (${String(answer[1])})` : ''}; take it back with: moefleet device unrevoke ${deviceId}`);
  if (code === 3) throw new DeviceRefusedError(deviceId, 'the id was released, or another installation has enrolled under it since; enrol this one with --enrol-token (moefleet token create)');
}

function bytes(writer: { finish(): Uint8Array }): Buffer {
  return Buffer.from(writer.finish());
}

type RawHashes = Omit<RawDevice, 'frame'>;

/** Throws RegistryDataError where an error came in place of its fields. */
function hashOf(key: string, found: unknown): RawHash {
  if (!Array.isArray(found)) throw new RegistryDataError(key, String(found));
  const hash: RawHash = {};
  for (let at = 0; at + 1 < found.length; at += 2) hash[String(found[at])] = found[at + 1] as Buffer;
  return hash;
}
