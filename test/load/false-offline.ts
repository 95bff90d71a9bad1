/**
 * Counts what is told falsely: a device's lease has run out, so that every operator sees it offline, while the device
 * has its stream. Redis itself says when a lease runs out; a lease that is given back says nothing. A device that comes back
 * just as the lease of its stream before runs out is no such case: the lease of the new one is fresh.
 */
import { Redis } from 'ioredis';
import type { HollowFleet } from './hollow-fleet/hollow-fleet';

/** A lease lasts 15 s, so it cannot be that of a stream younger than this. */
const SETTLED_MS = 5000;

export class FalseOffline {
  private readonly subscriber: Redis;
  private readonly asked: Promise<void>[] = [];
  private falsely = 0;
  private expired = 0;

  constructor(redisUrl: string, private readonly prefix: string, private readonly fleet: HollowFleet) {
    this.subscriber = new Redis(redisUrl, { lazyConnect: true });
    this.subscriber.on('error', () => {});
    this.subscriber.on('message', (_channel: string, key: string) => this.look(key));
  }

  async start(): Promise<void> {
    await this.subscriber.connect();
    await this.subscriber.subscribe('__keyevent@0__:expired');
  }

  /** Leases that ran out, and how many of them while the device was connected. */
  async counted(): Promise<{ expired: number; falsely: number }> {
    await Promise.all(this.asked);
    return { expired: this.expired, falsely: this.falsely };
  }

  stop(): void {
    this.subscriber.disconnect();
  }

  private look(key: string): void {
    const id = new RegExp(`^${this.prefix}:\\{dev:(.+)\\}:lease$`).exec(key)?.[1];
    if (!id) return;
    this.expired += 1;
    this.asked.push(this.fleet.connected([id], SETTLED_MS).then((connected) => { this.falsely += connected.length; }, () => {}));
  }
}
