/** A Redis Cluster of one node: it refuses, as any cluster does, what touches keys of several slots at once. */
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { freePort, until } from '../../../test/harness/ports';

export async function startClusterRedis(): Promise<{ url: string; close(): Promise<void> }> {
  const [port, clusterPort] = [await freePort(), await freePort()];
  const folder = await mkdtemp(join(tmpdir(), 'moefleet-cluster-'));
  const child = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--cluster-enabled', 'yes', '--cluster-port', String(clusterPort), '--cluster-announce-ip', '127.0.0.1'], { stdio: 'ignore' });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const client = new Redis({ port, host: '127.0.0.1', retryStrategy: () => 50 });
  client.on('error', () => {});
  await client.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383');
  await until('the cluster is formed', async () => String(await client.call('CLUSTER', 'INFO')).includes('cluster_state:ok'));
  client.disconnect();
  return {
    url: `redis://127.0.0.1:${port}`,
    async close() {
      child.kill('SIGTERM');
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}
