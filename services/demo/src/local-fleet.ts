/**
 * A whole fleet on one machine: Redis, Jaeger where there is one, a coordinator, a learner and any number of agents,
 * each the same program that runs on real machines, started through the command line. Everything it writes lies in
 * one folder.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Child } from './child-process';
import { freePort } from './free-port';
import { connects } from './port-connects';
import { freeJaegerPorts, type JaegerAddresses, jaegerAddresses, type JaegerPorts, startJaeger } from './jaeger';

/** The command line's entry; this file lies in services/demo/{src,dist}. */
export const CLI_PATH = join(__dirname, '..', '..', 'cli', 'bin', 'moefleet.js');

export interface FleetOptions {
  folder: string;
  keep: boolean;
  logLevel: string;
  /** called at each start with the pids of all that were started */
  onStart?: (pids: number[]) => void;
  /** more environment for every program */
  env?: Record<string, string>;
}

export interface AgentOptions {
  id: string;
  model: string;
  maxCache: string;
  labels?: string;
  /** further flags of `moefleet agent run` */
  flags?: string[];
  /** what to start in place of the program, with the program behind it: a control group, say */
  launcher?: { command: string; args: string[] };
}

export interface RunningAgent { id: string; child: Child; httpUrl: string; }

interface CoordinatorPorts { gateway: number; operator: number; http: number; }

export class LocalFleet {
  readonly children: Child[] = [];
  redisPort = 0;
  private ports: CoordinatorPorts | null = null;
  private jaegerPorts: JaegerPorts | null = null;
  private jaegerElsewhere: JaegerAddresses | null = null;

  constructor(private readonly options: FleetOptions) {}

  get redisUrl(): string {
    return `redis://127.0.0.1:${this.redisPort}`;
  }

  /** host:port of the operator API */
  get operator(): string {
    return `127.0.0.1:${this.coordinatorPorts.operator}`;
  }

  get gateway(): string {
    return `127.0.0.1:${this.coordinatorPorts.gateway}`;
  }

  get coordinatorUrl(): string {
    return `http://127.0.0.1:${this.coordinatorPorts.http}`;
  }

  private get coordinatorPorts(): CoordinatorPorts {
    if (!this.ports) throw new Error('the coordinator has not been started');
    return this.ports;
  }

  /** null where the fleet runs without Jaeger */
  get jaeger(): JaegerAddresses | null {
    return this.jaegerElsewhere ?? (this.jaegerPorts ? jaegerAddresses(this.jaegerPorts) : null);
  }

  async startRedis(): Promise<Child> {
    this.redisPort ||= await freePort();
    const folder = this.subfolder('redis');
    const child = this.add(Child.start({
      name: 'redis',
      command: 'redis-server',
      args: ['--port', String(this.redisPort), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'yes'],
      logPath: join(folder, 'redis.log'),
      keep: this.options.keep,
    }));
    await child.until('an answer on its port', async () => ((await connects(this.redisPort)) ? true : null), 10_000);
    return child;
  }

  /** Traces go to a Jaeger that runs already. */
  useJaeger(addresses: JaegerAddresses): void {
    this.jaegerElsewhere = addresses;
  }

  /** Fixes Jaeger's ports, so that agents can be told where it will be before it runs. */
  async reserveJaeger(): Promise<void> {
    this.jaegerPorts ??= await freeJaegerPorts();
  }

  async startJaeger(binary: string): Promise<Child> {
    await this.reserveJaeger();
    return this.add(await startJaeger(binary, this.subfolder('jaeger'), this.jaegerPorts!, this.options.keep));
  }

  /** The same ports at every start, so that a restarted coordinator is found again. */
  async startCoordinator(flags: string[] = []): Promise<Child> {
    this.ports ??= { gateway: await freePort(), operator: await freePort(), http: await freePort() };
    const child = this.startProgram('coordinator', [
      'coordinator', 'run', '--redis-url', this.redisUrl,
      '--gateway', this.gateway, '--operator', this.operator, '--http', `127.0.0.1:${this.ports.http}`,
      ...(this.jaeger ? ['--jaeger-url', this.jaeger.queryUrl] : []),
      ...flags,
    ]);
    await child.logLine('listening');
    return child;
  }

  async startLearner(model: string, text: string, flags: string[] = []): Promise<Child> {
    return this.startProgram('learner', [
      'learner', 'run', '--redis-url', this.redisUrl, '--operator', this.operator, '--http', '127.0.0.1:0', '--model', model, '--text', text, ...flags,
    ]);
  }

  async startAgent(agent: AgentOptions): Promise<RunningAgent> {
    const child = this.startProgram(agent.id, [
      'agent', 'run', '--id', agent.id, '--model', agent.model, '--max-cache', agent.maxCache,
      '--coordinator', this.ports ? this.gateway : 'none',
      '--state-dir', this.subfolder(join('state', agent.id)), '--http', '127.0.0.1:0', '--threads', '1',
      '--otlp-endpoint', this.jaeger?.otlpUrl ?? '',
      ...(agent.labels ? ['--labels', agent.labels] : []),
      ...(agent.flags ?? []),
    ], agent.launcher);
    const listening = await child.logLine('listening');
    return { id: agent.id, child, httpUrl: String(listening['httpUrl']) };
  }

  /** Ends everything, the latest first. */
  async stop(): Promise<void> {
    const redis = this.children.filter((child) => child.name === 'redis' || child.name === 'jaeger');
    const programs = this.children.filter((child) => !redis.includes(child));
    await Promise.all(programs.reverse().map((child) => child.stop()));
    await Promise.all(redis.reverse().map((child) => child.stop()));
  }

  private startProgram(name: string, args: string[], launcher?: AgentOptions['launcher']): Child {
    const folder = this.subfolder('logs');
    const launch = `${name}-${this.children.length}`;
    return this.add(Child.start({
      name,
      command: launcher?.command ?? process.execPath,
      args: [...(launcher ? [...launcher.args, process.execPath] : []), CLI_PATH, ...args],
      env: { MOEFLEET_LOG_LEVEL: this.options.logLevel, ...this.options.env },
      logPath: join(folder, `${launch}.log`),
      keep: this.options.keep,
    }));
  }

  private add(child: Child): Child {
    this.children.push(child);
    this.options.onStart?.(this.children.flatMap((one) => one.pid ?? []));
    return child;
  }

  private subfolder(name: string): string {
    const folder = join(this.options.folder, name);
    mkdirSync(folder, { recursive: true });
    return folder;
  }
}
