/** A Redis of the test's own: free port, temporary folder, gone with `close`. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, until } from './ports';

export interface TestRedis {
  readonly url: string;
  readonly port: number;
  /** Ends the process, keeping the port for `start`. */
  stop(): Promise<void>;
  /** As a crash does; likewise. */
  kill(): Promise<void>;
  /** SIGSTOP, SIGCONT. */
  signal(signal: NodeJS.Signals): void;
  /** Starts it again on the same port and folder, with what it had persisted. */
  start(): Promise<void>;
  /** Ends it and removes its folder. */
  close(): Promise<void>;
}

/** `appendOnly: false`: keeps only what BGSAVE has dumped, as a Redis that is restored from a dump. */
export async function startRedis({ appendOnly = true }: { appendOnly?: boolean } = {}): Promise<TestRedis> {
  const port = await freePort();
  const folder = await mkdtemp(join(tmpdir(), 'moefleet-redis-'));
  let child: ChildProcess | null = null;
  const end = async (signal: NodeJS.Signals) => {
    const running = child;
    child = null;
    if (!running) return;
    const ended = new Promise<void>((resolve) => running.once('exit', () => resolve()));
    running.kill(signal);
    await ended;
  };
  const redis: TestRedis = {
    url: `redis://127.0.0.1:${port}`,
    port,
    async start() {
      child = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--appendonly', appendOnly ? 'yes' : 'no', '--save', ''], { stdio: 'ignore' });
      const failed = new Promise<never>((_, reject) => child!.once('error', (error) => reject(new Error(`redis-server cannot be started (${error.message}); install it with: apt-get install redis-server`))));
      await Promise.race([failed, until('redis answers', () => answers(port))]);
    },
    stop: () => end('SIGTERM'),
    kill: () => end('SIGKILL'),
    signal(signal) {
      child?.kill(signal);
    },
    async close() {
      await redis.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
  await redis.start();
  return redis;
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write('PING\r\n'));
    const end = (value: boolean) => { socket.destroy(); resolve(value); };
    socket.once('data', (data) => end(data.toString().startsWith('+PONG')));
    socket.once('error', () => end(false));
    socket.setTimeout(500, () => end(false));
  });
}
