/** Operators' pins in Redis. A device's lie with the device, those of groups and of the fleet together. */
import { type Logger, parseSelector, type Selector } from '@moefleet/runtime';
import { reasonOf, show } from '../errors';
import { decodePinSet } from './device-record';
import type { Keys } from './keys';
import { type GroupPins, type PinByField, type PinField, type PinPlace, type PinSet } from './pin';
import type { RedisLink } from './redis-link';

export interface SharedPins { fleet: PinSet; groups: GroupPins[] }

export class PinStore {
  private toldDamage = '';

  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger) {}

  async set<F extends PinField>(place: PinPlace, field: F, pin: Omit<PinByField[F], 'order'>): Promise<void> {
    const order = await this.link.run(this.keys.pinOrder, (client) => client.incr(this.keys.pinOrder));
    const [key, name] = this.locate(place, field);
    await this.link.run(key, (client) => client.hset(key, name, JSON.stringify({ ...pin, order })));
  }

  /** Whether there was one. */
  async clear(place: PinPlace, field: PinField): Promise<boolean> {
    const [key, name] = this.locate(place, field);
    return await this.link.run(key, (client) => client.hdel(key, name)) > 0;
  }

  /** Pins of the fleet and of all groups. */
  async shared(): Promise<SharedPins> {
    const raw = await this.link.run(this.keys.pins, (client) => client.hgetallBuffer(this.keys.pins));
    const damaged: string[] = [];
    const selectors = new Set(Object.keys(raw).flatMap((name) => /^[a-z]+\|group:(.*)$/s.exec(name)?.[1] ?? []));
    const groups = [...selectors].flatMap((selector): GroupPins[] => {
      const matches = readSelector(selector, damaged);
      return matches ? [{ selector, matches, pins: decodePinSet(raw, `|group:${selector}`, damaged) }] : [];
    });
    const fleet = decodePinSet(raw, '|fleet', damaged);
    this.tellDamage(damaged.join('; '));
    return { fleet, groups };
  }

  private locate(place: PinPlace, field: PinField): [key: string, name: string] {
    if (place.t === 'device') return [this.keys.devicePins(place.deviceId), field];
    return [this.keys.pins, place.t === 'fleet' ? `${field}|fleet` : `${field}|group:${place.selector}`];
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
