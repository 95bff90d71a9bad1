/** Work that one coordinator does at a time, whichever it is. */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { BusyError } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';
import { LUA } from './scripts';

/** Outlives two renewals that were lost; of a coordinator that dies, the others wait no longer. */
const TTL_MS = 30_000;
const LOOK_EVERY_MS = 200;
const MOST_WAIT_MS = 45_000;

export class TurnStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  /** `what`: for people. Throws BusyError where another keeps its turn for long. */
  async inTurn<T>(name: string, what: string, work: () => Promise<T>): Promise<T> {
    const holder = randomUUID();
    const take = async (ttlMs: number) => Number(await this.link.script(LUA.takeTurn, [this.keys.turn(name)], [holder, ttlMs])) === 1;
    for (const deadline = Date.now() + MOST_WAIT_MS; !await take(TTL_MS); await sleep(LOOK_EVERY_MS)) {
      if (Date.now() > deadline) throw new BusyError(`${what} is under way already; try again in a moment`);
    }
    const renewal = setInterval(() => void take(TTL_MS).catch(() => {}), TTL_MS / 3);
    try {
      return await work();
    } finally {
      clearInterval(renewal);
      // It runs out by itself.
      await take(0).catch(() => {});
    }
  }
}
