/**
 * Router windows in Redis: the latest of each device, within a bound in number and bytes, until an operator deletes them.
 * What a device sends is kept as it is; whoever replays it checks it.
 */
import { RouterWindow } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

export interface WindowBound { windows: number; bytes: number }

export interface KeptWindow { window: RouterWindow; /** of the whole message */ bytes: number }

/** What one device's router windows may take in Redis. */
export const WINDOW_BOUND: WindowBound = { windows: 64, bytes: 8 * 1024 * 1024 };

export class WindowStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys, private readonly log: Logger, readonly bound = WINDOW_BOUND) {}

  /** Number of older windows dropped to stay within the bound. One that is there already is not stored again. */
  async push(deviceId: string, window: RouterWindow): Promise<number> {
    const bytes = Buffer.from(RouterWindow.encode(window).finish());
    return Number(await this.link.script(LUA.pushWindow, this.keysOf(deviceId), [bytes, this.bound.windows, this.bound.bytes]));
  }

  /** Oldest first; those that cannot be decoded are left out. */
  async list(deviceId: string): Promise<KeptWindow[]> {
    const key = this.keys.windows(deviceId);
    const found = await this.link.run(key, (client) => client.lrangeBuffer(key, 0, -1));
    return found.reverse().flatMap((item) => {
      try {
        return [{ window: RouterWindow.decode(item), bytes: item.length }];
      } catch (err) {
        this.log.warn({ key, err }, 'router window cannot be decoded');
        return [];
      }
    });
  }

  /** What there was. */
  async delete(deviceId: string): Promise<{ windows: number; bytes: number }> {
    const [windows, bytes] = await this.link.script(LUA.deleteWindows, this.keysOf(deviceId), []) as unknown[];
    return { windows: Number(windows), bytes: Number(bytes) };
  }

  private keysOf(deviceId: string): string[] {
    return [this.keys.windows(deviceId), this.keys.windowBytes(deviceId)];
  }
}
