/** A Redis Cluster of three masters with a replica each, whose masters can be killed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { freePort, until } from './ports';

export interface ReplicatedCluster {
  /** of all nodes */
  readonly url: string;
  /** Port of the node that serves a key now. */
  masterOf(key: string): Promise<number>;
  /** Ports of the nodes that serve slots now. */
  masters(): Promise<number[]>;
  /** Its replica gets nothing more of what is written to it, as when it has fallen behind. */
  detach(master: number): Promise<void>;
  /** As a crash does; resolves when a replica serves its slots. */
  failover(master: number): Promise<void>;
  close(): Promise<void>;
}

const SLOTS = 16_384;
const MASTERS = 3;
/** A node that is silent for this long has failed. */
const NODE_TIMEOUT_MS = 1000;

interface ClusterNode { port: number; busPort: number; child: ChildProcess }

export async function startReplicatedCluster(): Promise<ReplicatedCluster> {
  const folder = await mkdtemp(join(tmpdir(), 'moefleet-cluster-'));
  const nodes: ClusterNode[] = [];
  for (let at = 0; at < 2 * MASTERS; at += 1) {
    const [port, busPort] = [await freePort(), await freePort()];
    const child = spawn('redis-server', [
      '--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--dbfilename', `${port}.rdb`, '--save', '', '--repl-diskless-sync-delay', '0',
      '--cluster-enabled', 'yes', '--cluster-config-file', `nodes-${port}.conf`, '--cluster-port', String(busPort), '--cluster-announce-ip', '127.0.0.1', '--cluster-node-timeout', String(NODE_TIMEOUT_MS),
    ], { stdio: 'ignore' });
    nodes.push({ port, busPort, child });
  }
  const alive = () => nodes.filter(({ child }) => child.exitCode === null && child.signalCode === null);
  await form(nodes);

  /** [first slot, last slot, [ip, port, …] of the master, …of replicas] as a node that is alive sees them. */
  const slots = async () => await ask(alive()[0]!.port, 'CLUSTER', 'SLOTS') as [number, number, [string, number], ...unknown[]][];
  return {
    url: `redis://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}`,
    async masterOf(key) {
      const slot = Number(await ask(alive()[0]!.port, 'CLUSTER', 'KEYSLOT', key));
      return (await slots()).find(([first, last]) => first <= slot && slot <= last)![2][1];
    },
    async masters() {
      return [...new Set((await slots()).map(([, , [, port]]) => port))];
    },
    async detach(master) {
      const replica = (await slots()).find(([, , [, port]]) => port === master)![3] as [string, number];
      // It has to connect anew, and does not get past the password that its master does not know.
      await ask(replica[1], 'CONFIG', 'SET', 'masterauth', 'none');
      await ask(replica[1], 'CLIENT', 'KILL', 'TYPE', 'master');
    },
    async failover(master) {
      nodes.find(({ port }) => port === master)!.child.kill('SIGKILL');
      await until('a replica has taken its place', async () => {
        const states = await Promise.all(alive().map(({ port }) => ask(port, 'CLUSTER', 'INFO')));
        return states.every((state) => String(state).includes('cluster_state:ok')) && !(await slots()).some(([, , [, port]]) => port === master);
      });
    },
    async close() {
      await Promise.all(alive().map(({ child }) => new Promise<void>((resolve) => {
        child.once('exit', () => resolve());
        child.kill('SIGKILL');
      })));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function form(nodes: readonly ClusterNode[]): Promise<void> {
  await until('the nodes answer', async () => (await Promise.all(nodes.map(({ port }) => ask(port, 'PING')))).every((answer) => answer === 'PONG'));
  const [first, ...others] = nodes;
  for (const { port, busPort } of others) await ask(first!.port, 'CLUSTER', 'MEET', '127.0.0.1', String(port), String(busPort));
  const share = Math.ceil(SLOTS / MASTERS);
  for (let at = 0; at < MASTERS; at += 1) {
    await ask(nodes[at]!.port, 'CLUSTER', 'ADDSLOTSRANGE', String(at * share), String(Math.min(SLOTS, (at + 1) * share) - 1));
  }
  await until('the nodes know each other', async () => {
    const seen = await Promise.all(nodes.map(({ port }) => ask(port, 'CLUSTER', 'INFO')));
    return seen.every((info) => String(info).includes(`cluster_known_nodes:${nodes.length}`));
  });
  for (let at = 0; at < MASTERS; at += 1) {
    const id = String(await ask(nodes[at]!.port, 'CLUSTER', 'MYID'));
    await until('it becomes a replica', async () => await ask(nodes[MASTERS + at]!.port, 'CLUSTER', 'REPLICATE', id) === 'OK');
  }
  await until('the replicas follow', async () => {
    const found = await Promise.all(nodes.slice(MASTERS).map(({ port }) => ask(port, 'INFO', 'replication')));
    const states = await Promise.all(nodes.map(({ port }) => ask(port, 'CLUSTER', 'INFO')));
    return found.every((info) => String(info).includes('master_link_status:up')) && states.every((info) => String(info).includes('cluster_state:ok'));
  });
}

async function ask(port: number, ...command: [string, ...string[]]): Promise<unknown> {
  const client = new Redis({ port, host: '127.0.0.1', retryStrategy: () => null, lazyConnect: true });
  client.on('error', () => {});
  try {
    await client.connect();
    return await client.call(...command);
  } finally {
    client.disconnect();
  }
}
