/** Who is in the fleet that should not be: asked of Redis and of the operator API, which have to say the same. */
import { Redis } from 'ioredis';
import type { Device, OperatorServiceClient } from '@moefleet/proto';

export interface TrespassOptions {
  redisUrl: string;
  prefix: string;
  operator: OperatorServiceClient;
  /** devices that belong there, each with the installation that has it; their key must not have changed since `remember` */
  honest: ReadonlyMap<string, string>;
  /** whether a device may be there at all; in plaintext anybody may be anybody */
  mayBe: (id: string) => boolean;
}

export class Trespass {
  private readonly keys = new Map<string, string>();

  constructor(private readonly options: TrespassOptions) {}

  /** What the honest devices have now. */
  async remember(): Promise<void> {
    await this.withRedis(async (redis) => {
      for (const id of this.options.honest.keys()) this.keys.set(id, await this.identityOf(redis, id));
    });
  }

  /** In words; empty where all is well. */
  async found(): Promise<string[]> {
    const { prefix, honest, mayBe } = this.options;
    const listed = new Map((await this.listed()).map((device) => [device.id, device]));
    return this.withRedis(async (redis) => {
      const found: string[] = [];
      const known = await redis.smembers(`${prefix}:{devices}`);
      for (const id of known) {
        if (!mayBe(id)) found.push(`${id} is known to Redis`);
      }
      for (const id of listed.keys()) {
        if (!mayBe(id)) found.push(`${id} is shown to operators`);
        else if (!known.includes(id)) found.push(`${id} is shown to operators, and unknown to Redis`);
      }
      for (const [id, installId] of honest) {
        const key = (what: string) => `${prefix}:{dev:${id}}:${what}`;
        for (const what of ['lease', 'state']) {
          const holder = await redis.hget(key(what), 'installId');
          if (holder !== installId) found.push(`${id}: its ${what} is of installation ${holder}`);
        }
        if (await this.identityOf(redis, id) !== this.keys.get(id)) found.push(`${id}: its identity has changed`);
        if (!listed.get(id)?.online) found.push(`${id} is shown as offline`);
      }
      return found;
    });
  }

  private async listed(): Promise<Device[]> {
    const devices: Device[] = [];
    let pageToken = '';
    do {
      const page = await new Promise<{ devices: Device[]; nextPageToken: string }>((resolve, reject) => {
        this.options.operator.listDevices({ selector: undefined, pageSize: 500, pageToken }, (error, answer) => (error ? reject(error) : resolve(answer)));
      });
      devices.push(...page.devices);
      pageToken = page.nextPageToken;
    } while (pageToken);
    return devices;
  }

  private async identityOf(redis: Redis, id: string): Promise<string> {
    return JSON.stringify(await redis.hmget(`${this.options.prefix}:{dev:${id}}:identity`, 'installId', 'keyHash', 'revokedMs', 'releasedMs'));
  }

  private async withRedis<T>(work: (redis: Redis) => Promise<T>): Promise<T> {
    const redis = new Redis(this.options.redisUrl, { lazyConnect: true });
    redis.on('error', () => {});
    await redis.connect();
    try {
      return await work(redis);
    } finally {
      redis.disconnect();
    }
  }
}
