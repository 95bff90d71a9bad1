/**
 * When pins end, in Redis. A time is noted before its pin is written, so that no pin that ends is ever without one; a note
 * whose pin is not there, or ends later, is forgotten when its time has come.
 */
import { parseSelector } from '@moefleet/runtime';
import { isId } from '../names';
import type { Keys } from './keys';
import { decodePin, PIN_FIELDS, type PinByField, type PinField, type PinPlace } from './pin';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export interface NotedPin { place: PinPlace; field: PinField; /** as it is noted */ member: string }
export interface StoredPin { pin: PinByField[PinField]; /** as Redis holds it */ json: string }

export class PinExpiryStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly coordinatorId: string) {}

  async note(place: PinPlace, field: PinField, expiresMs: number): Promise<void> {
    const key = this.keys.pinExpiry;
    await this.link.run(key, (client) => client.zadd(key, expiresMs, memberOf(place, field)));
  }

  /** Pins whose time has come, at most `most`. */
  async due(nowMs: number, most: number): Promise<NotedPin[]> {
    const key = this.keys.pinExpiry;
    const members = await this.link.run(key, (client) => client.zrangebyscore(key, '-inf', nowMs, 'LIMIT', 0, most));
    const noted = members.map(notedPin);
    const strange = members.filter((_, at) => noted[at] === null);
    if (strange.length > 0) await this.link.run(key, (client) => client.zrem(key, ...strange));
    return noted.filter((pin) => pin !== null);
  }

  /** What lies there now, ended or not; null for nothing, or for what is no pin. */
  async read(place: PinPlace, field: PinField): Promise<StoredPin | null> {
    const [key, name] = locatePin(this.keys, place, field);
    const json = await this.link.run(key, (client) => client.hget(key, name));
    if (json === null) return null;
    try {
      return { pin: decodePin(field, json), json };
    } catch {
      return null;
    }
  }

  /** false: it is another by now. */
  async remove(place: PinPlace, field: PinField, { json }: StoredPin): Promise<boolean> {
    const [key, name] = locatePin(this.keys, place, field);
    return Number(await this.link.script(LUA.removePin, [key], [name, json])) === 1;
  }

  async forget({ member }: NotedPin, nowMs: number): Promise<void> {
    await this.link.script(LUA.forgetExpiry, [this.keys.pinExpiry], [member, nowMs]);
  }

  /** Whether it is this coordinator's turn to end pins, and then for so long. 0 gives the turn back. */
  async takeTurn(ttlMs: number): Promise<boolean> {
    return Number(await this.link.script(LUA.takeTurn, [this.keys.pinSweeper], [this.coordinatorId, ttlMs])) === 1;
  }
}

/** Key of the hash, and the field in it. */
export function locatePin(keys: Keys, place: PinPlace, field: PinField): [key: string, name: string] {
  if (place.t === 'device') return [keys.devicePins(place.deviceId), field];
  return [keys.pins, place.t === 'fleet' ? `${field}|fleet` : `${field}|group:${place.selector}`];
}

function memberOf(place: PinPlace, field: PinField): string {
  switch (place.t) {
    case 'fleet': return `${field}|fleet`;
    case 'group': return `${field}|group:${place.selector}`;
    case 'device': return `${field}|device:${place.deviceId}`;
  }
}

function notedPin(member: string): NotedPin | null {
  const [, name, kind, rest] = /^([a-z]+)\|(fleet|group:|device:)(.*)$/s.exec(member) ?? [];
  const field = PIN_FIELDS.find((known) => known === name);
  if (!field || (kind === 'fleet') !== (rest === '')) return null;
  switch (kind) {
    case 'fleet': return { place: { t: 'fleet' }, field, member };
    case 'group:': return isSelector(rest!) ? { place: { t: 'group', selector: rest! }, field, member } : null;
    default: return isId(rest!) ? { place: { t: 'device', deviceId: rest! }, field, member } : null;
  }
}

function isSelector(text: string): boolean {
  try {
    return parseSelector(text).length > 0;
  } catch {
    return false;
  }
}
