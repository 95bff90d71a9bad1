/** Operators' pins in Redis. A device's lie with the device, those of groups and of the fleet together. */
import type { Proposal } from '@moefleet/proto';
import { type Logger, parseSelector, type Selector } from '@moefleet/runtime';
import { reasonOf, show } from '../errors';
import { decodePinSet } from './device-record';
import type { Keys } from './keys';
import { decodeKillSwitch, type KillSwitch } from './kill-switch';
import { type GroupPins, type PinByField, type PinField, type PinPlace, type PinSet, standingPins } from './pin';
import { locatePin, type PinExpiryStore } from './pin-expiry-store';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';
import { decodeStagedValues, encodeMark, encodeStagedValue, stagedMarkField, type StagedValue, stagedValueField } from './staged-value';

export interface SharedPins {
  fleet: PinSet;
  groups: GroupPins[];
  /** null: not held */
  kill: KillSwitch | null;
  /** of rollouts under way */
  staged: readonly StagedValue[];
}

/** Beside the pins, so that all layers are read in one step. */
const KILL_SWITCH = 'kill-switch';

export class PinStore {
  private toldDamage = '';
  private reading: Promise<SharedPins> | null = null;

  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly expiry: PinExpiryStore, private readonly log: Logger, private readonly now: () => number = Date.now) {}

  nextOrder(): Promise<number> {
    return this.link.run(this.keys.pinOrder, (client) => client.incr(this.keys.pinOrder));
  }

  async set<F extends PinField>(place: PinPlace, field: F, pin: Omit<PinByField[F], 'order'>): Promise<void> {
    const order = await this.nextOrder();
    const [key, name] = locatePin(this.keys, place, field);
    if (pin.expiresMs !== undefined) await this.expiry.note(place, field, pin.expiresMs);
    await this.link.run(key, (client) => client.hset(key, name, JSON.stringify({ ...pin, order })));
  }

  /** Whether there was one. */
  async clear(place: PinPlace, field: PinField): Promise<boolean> {
    const [key, name] = locatePin(this.keys, place, field);
    return await this.link.run(key, (client) => client.hdel(key, name)) > 0;
  }

  /** Pins of the fleet and of all groups, without those that have ended. Whoever asks in the same turn of the event loop shares one read, sent after all have asked. */
  shared(): Promise<SharedPins> {
    if (!this.reading) {
      this.reading = new Promise((resolve) => setImmediate(() => {
        this.reading = null;
        resolve(this.readShared());
      }));
    }
    return this.reading;
  }

  async setKillSwitch(kill: KillSwitch | null): Promise<void> {
    const key = this.keys.pins;
    await this.link.run<unknown>(key, (client) => (kill ? client.hset(key, KILL_SWITCH, JSON.stringify(kill)) : client.hdel(key, KILL_SWITCH)));
  }

  /** From now on the value counts for devices that carry the mark. */
  async stage(value: StagedValue): Promise<void> {
    const key = this.keys.pins;
    await this.link.run(key, (client) => client.hset(key, stagedValueField(value.rolloutId), encodeStagedValue(value)));
  }

  /** Voids all marks of the rollout. */
  async unstage(rolloutId: string): Promise<void> {
    const key = this.keys.pins;
    await this.link.run(key, (client) => client.hdel(key, stagedValueField(rolloutId)));
  }

  /**
   * Makes a staged value the value of its layer, and voids the marks. May be repeated. `always`: also where it is staged no
   * more, to put a value back.
   */
  async promote(value: StagedValue, always = false): Promise<void> {
    const { layer, field, pin, rolloutId } = value;
    if (layer.t === 'learner') return this.unstage(rolloutId);
    const [key, name] = locatePin(this.keys, layer, field);
    if (pin?.expiresMs !== undefined) await this.expiry.note(layer, field, pin.expiresMs);
    const json = pin ? JSON.stringify(pin) : '';
    if (layer.t === 'device') {
      await this.link.run<unknown>(key, (client) => (pin ? client.hset(key, name, json) : client.hdel(key, name)));
      return this.unstage(rolloutId);
    }
    await this.link.script(LUA.promotePin, [this.keys.pins], [stagedValueField(rolloutId), name, json, always ? 1 : 0]);
  }

  /** `proposal`: the learner's value for this device, where the rollout is the learner's. */
  async mark(deviceId: string, rolloutId: string, proposal: Proposal | null): Promise<void> {
    const key = this.keys.devicePins(deviceId);
    await this.link.run(key, (client) => client.hset(key, stagedMarkField(rolloutId), encodeMark(proposal)));
  }

  async unmark(deviceId: string, rolloutId: string): Promise<void> {
    const key = this.keys.devicePins(deviceId);
    await this.link.run(key, (client) => client.hdel(key, stagedMarkField(rolloutId)));
  }

  private async readShared(): Promise<SharedPins> {
    const raw = await this.link.run(this.keys.pins, (client) => client.hgetallBuffer(this.keys.pins));
    const damaged: string[] = [];
    const nowMs = this.now();
    const selectors = new Set(Object.keys(raw).flatMap((name) => /^[a-z]+\|group:(.*)$/s.exec(name)?.[1] ?? []));
    const groups = [...selectors].flatMap((selector): GroupPins[] => {
      const matches = readSelector(selector, damaged);
      return matches ? [{ selector, matches, pins: standingPins(decodePinSet(raw, `|group:${selector}`, damaged), nowMs) }] : [];
    });
    const fleet = standingPins(decodePinSet(raw, '|fleet', damaged), nowMs);
    const staged = decodeStagedValues(raw, damaged);
    this.tellDamage(damaged.join('; '));
    return { fleet, groups, kill: decodeKillSwitch(raw[KILL_SWITCH]?.toString('utf8')), staged };
  }

  private tellDamage(damage: string): void {
    if (damage && damage !== this.toldDamage) this.log.error({ key: this.keys.pins, damage }, 'redis holds pins that cannot be decoded; left out');
    this.toldDamage = damage;
  }
}

function readSelector(text: string, damaged: string[]): Selector | null {
  try {
    return parseSelector(text);
  } catch (error) {
    damaged.push(`group ${show(text)}: ${reasonOf(error)}`);
    return null;
  }
}
