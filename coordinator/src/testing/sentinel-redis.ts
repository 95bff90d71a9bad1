/** A master, its replica and three Sentinels that watch them, for a failover. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { freePort, until } from '../../../test/harness/ports';

export const SENTINEL_NAME = 'fleet';

export interface SentinelRedis {
  /** of the Sentinels */
  readonly url: string;
  /** Ends the master as a crash does; resolves when the replica has taken its place. */
  failover(): Promise<void>;
  close(): Promise<void>;
}

export async function startSentinelRedis(): Promise<SentinelRedis> {
  const folder = await mkdtemp(join(tmpdir(), 'moefleet-sentinel-'));
  const children: ChildProcess[] = [];
  const run = (...args: string[]) => {
    const child = spawn('redis-server', args, { stdio: 'ignore' });
    children.push(child);
    return child;
  };
  const server = (port: number, ...more: string[]) => run('--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--dbfilename', `${port}.rdb`, '--save', '', '--repl-diskless-sync-delay', '0', ...more);
  const [master, replica] = [await freePort(), await freePort()];
  const masterProcess = server(master);
  server(replica, '--replicaof', '127.0.0.1', String(master));
  const ask = async (port: number, ...command: [string, ...string[]]) => {
    const client = new Redis({ port, host: '127.0.0.1', retryStrategy: () => null, lazyConnect: true });
    client.on('error', () => {});
    try {
      await client.connect();
      return String(await client.call(...command));
    } finally {
      client.disconnect();
    }
  };
  await until('the replica follows', async () => (await ask(replica, 'INFO', 'replication')).includes('master_link_status:up'));
  const sentinels: number[] = [];
  for (let at = 0; at < 3; at += 1) {
    const port = await freePort();
    const file = join(folder, `sentinel-${at}.conf`);
    await writeFile(file, [
      `port ${port}`, 'bind 127.0.0.1', `dir ${folder}`, `sentinel monitor ${SENTINEL_NAME} 127.0.0.1 ${master} 2`,
      `sentinel down-after-milliseconds ${SENTINEL_NAME} 1000`, `sentinel failover-timeout ${SENTINEL_NAME} 5000`, '',
    ].join('\n'));
    run(file, '--sentinel');
    sentinels.push(port);
  }
  const knows = async (port: number) => {
    const info = await ask(port, 'INFO', 'sentinel');
    return info.includes('slaves=1') && info.includes('sentinels=3');
  };
  await until('the Sentinels know each other', async () => (await Promise.all(sentinels.map(knows))).every(Boolean));
  return {
    url: `redis://${sentinels.map((port) => `127.0.0.1:${port}`).join(',')}`,
    async failover() {
      masterProcess.kill('SIGKILL');
      await until('the replica is master', async () => (await ask(replica, 'INFO', 'replication')).includes('role:master'));
    },
    async close() {
      await Promise.all(children.map((child) => new Promise<void>((resolve) => {
        if (child.exitCode !== null || child.signalCode !== null) return resolve();
        child.once('exit', () => resolve());
        child.kill('SIGKILL');
      })));
      await rm(folder, { recursive: true, force: true });
    },
  };
}
