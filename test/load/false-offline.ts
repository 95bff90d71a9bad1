/**
 * Counts what is told falsely: a device's lease has run out, so that every operator sees it offline, while the device
 * has its stream. Redis itself says when a lease runs out; a lease that is given back says nothing.
 */
import { Redis } from 'ioredis';
import type { HollowFleet } from './hollow-fleet/hollow-fleet';

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
    this.asked.push(this.fleet.connected([id]).then((connected) => { this.falsely += connected.length; }, () => {}));
  }
}
