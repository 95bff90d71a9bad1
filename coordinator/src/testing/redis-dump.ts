import { Redis } from 'ioredis';
import { until } from '../../../test/harness/ports';

/** Has a Redis without an append-only file written to its dump, which is what it has when it is started again. */
export async function dump(url: string): Promise<void> {
  const client = new Redis(url);
  const before = await client.lastsave();
  // LASTSAVE has a resolution of a second.
  await new Promise((resolve) => setTimeout(resolve, 1100));
  await client.bgsave();
  await until('the dump is written', async () => await client.lastsave() > before);
  client.disconnect();
}
