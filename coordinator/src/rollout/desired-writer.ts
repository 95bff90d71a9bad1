/**
 * Brings one device's desired spec in line with the pins and the learner's value, by compare-and-set. Level-based: it
 * computes from what the registry holds now, so it may run at any time, any number of times, on any coordinator.
 */
import { DeviceSpec } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { RegistryDataError } from '../errors';
import { type DesiredRecord, type FleetSubject, generationOf, highestReported, specHash, type SpecSubject } from '../registry/device-record';
import type { SharedPins } from '../registry/pin-store';
import type { Registry } from '../registry/registry';
import { effectiveSpec, type EffectiveSpecResult, type SpecInputs } from './effective-spec';
import { isHeld } from './held';

export interface DesiredOutcome {
  device: SpecSubject;
  effective: EffectiveSpecResult;
  written: boolean;
  /** nothing was written, because the registry has lost what the device runs (held.ts) */
  held: boolean;
  desired: DesiredRecord;
  /** of desired; 0 if it has none because nothing is set for it */
  generation: bigint;
  /** hex; empty if it has none */
  hash: string;
}

type SetDesired = Extract<DesiredRecord, { t: 'set' }>;

interface MadeSpec { readonly effective: EffectiveSpecResult; readonly spec: Buffer; /** hex */ readonly hash: string }

/** Losing this often means that someone writes in a loop, not that two have met. */
const MOST_TRIES = 20;

export class DesiredWriter {
  /** Devices and their generations of which was told that they are held. */
  private readonly told = new Map<string, bigint>();
  /** by what operators have set, and then by the model */
  private readonly made = new WeakMap<SharedPins, Map<SpecSubject['model'], MadeSpec>>();

  private underWay = 0;

  constructor(private readonly registry: Registry, private readonly log: Logger) {}

  /** Whether what devices shall run is on its way to the registry. */
  get writing(): boolean {
    return this.underWay > 0;
  }

  /** null for a device nobody has seen. `origin` is told to the agent. `accept`: also where the device is held. */
  async align(deviceId: string, origin: string, accept = false): Promise<DesiredOutcome | null> {
    for (let attempt = 0; attempt < MOST_TRIES; attempt += 1) {
      const device = await this.registry.devices.readSubject(deviceId);
      if (!device) return null;
      const outcome = await this.alignOnce(device, await this.registry.pins.shared(), origin, accept);
      if (outcome) return outcome;
    }
    throw new RegistryDataError(`desired of ${deviceId}`, `it was changed by others ${MOST_TRIES} times in a row`);
  }

  /**
   * The same for a device as a change for all has read it, in one step less: the generation and the hash written; null
   * where it has to be read for that, because it has settings of its own, runs this already, or has changed since.
   */
  async alignPlain({ id, model, plain }: FleetSubject, origin: string): Promise<{ generation: bigint; hash: string } | null> {
    const shared = await this.registry.pins.shared();
    if (!plain || shared.groups.length > 0) return null;
    const { spec, hash, effective } = this.specByModel(model, shared);
    if (plain.hash === hash || (plain.hash === '' && spec.length === 0)) return null;
    const answer = await this.write(id, plain.generation, 0n, spec, origin, true);
    if (answer.t === 'stale') return null;
    this.noteWritten(id, { generation: answer.generation, spec, decoded: effective.spec, hash, origin });
    return { generation: answer.generation, hash };
  }

  /** null where someone else has written since `device` was read. */
  private async alignOnce(device: SpecSubject, shared: SharedPins, origin: string, accept: boolean): Promise<DesiredOutcome | null> {
    const { effective, spec, hash } = this.specOf(device, shared);
    const { desired } = device;
    const reportedGeneration = highestReported(device.reported);
    const behind = reportedGeneration > generationOf(desired);
    // A device nothing is set for runs the defaults, which are those of an empty spec.
    const same = desired.t === 'set' ? desired.hash === hash : desired.t === 'none' && spec.length === 0;
    if (same && !behind) {
      return { device, effective, written: false, held: false, desired, generation: generationOf(desired), hash: desired.t === 'set' ? hash : '' };
    }
    if (!accept && isHeld(device, hash, Boolean(shared.kill))) {
      this.tellHeld(device.id, reportedGeneration, generationOf(desired));
      return { device, effective, written: false, held: true, desired, generation: generationOf(desired), hash: '' };
    }
    if (behind) {
      this.log.warn({ deviceId: device.id, reportedGeneration, registryGeneration: generationOf(desired) },
        'device reports a higher generation than the registry holds (a restored or emptied Redis?); writing above it');
    }
    const told = behind ? `${origin}; the registry was behind the device's generation ${reportedGeneration}` : origin;
    const answer = await this.write(device.id, generationOf(desired), reportedGeneration, spec, told);
    if (answer.t === 'stale') return null;
    const now = this.noteWritten(device.id, { generation: answer.generation, spec, decoded: effective.spec, hash, origin: told });
    return { device, effective, written: true, held: false, desired: now, generation: answer.generation, hash };
  }

  private async write(...what: Parameters<Registry['devices']['writeDesired']>): ReturnType<Registry['devices']['writeDesired']> {
    this.underWay += 1;
    try {
      return await this.registry.devices.writeDesired(...what);
    } finally {
      this.underWay -= 1;
    }
  }

  private noteWritten(deviceId: string, { generation, spec, decoded, hash, origin }: Omit<SetDesired, 't'>): SetDesired {
    const written: SetDesired = { t: 'set', generation, spec, decoded, hash, origin };
    this.log.info({ deviceId, generation, hash, origin }, 'desired written');
    this.registry.events.emit({ kind: 'desired', deviceId, written });
    return written;
  }

  private specOf(device: SpecSubject, shared: SharedPins): MadeSpec {
    const alike = shared.groups.length === 0 && device.marks.size === 0 && !device.learned && Object.keys(device.pins).length === 0;
    return alike ? this.specByModel(device.model, shared) : makeSpec(specInputs(device, shared));
  }

  /** Devices with nothing of their own share the spec of their model, as long as `shared`, without groups, holds. */
  private specByModel(model: SpecSubject['model'], shared: SharedPins): MadeSpec {
    let byModel = this.made.get(shared);
    if (!byModel) this.made.set(shared, byModel = new Map());
    let made = byModel.get(model);
    if (!made) byModel.set(model, made = makeSpec({ labels: {}, model, devicePins: {}, shared, learned: undefined }));
    return made;
  }

  private tellHeld(deviceId: string, reportedGeneration: bigint, registryGeneration: bigint): void {
    if (this.told.get(deviceId) === reportedGeneration) return;
    this.told.set(deviceId, reportedGeneration);
    this.log.warn({ deviceId, reportedGeneration, registryGeneration },
      'the registry has lost what the device runs (Redis was emptied or restored); it keeps its spec until an operator runs: moefleet fleet accept-restore');
  }
}

function makeSpec(inputs: SpecInputs): MadeSpec {
  const effective = effectiveSpec(inputs);
  const spec = Buffer.from(DeviceSpec.encode(effective.spec).finish());
  return { effective, spec, hash: specHash(spec) };
}

export function specInputs(device: Omit<SpecSubject, 'desired' | 'reported'>, shared: SharedPins): SpecInputs {
  return { labels: device.labels, model: device.model, devicePins: device.pins, marks: device.marks, shared, learned: device.learned };
}
