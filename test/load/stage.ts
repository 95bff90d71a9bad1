/** What a load runs against: a Redis of its own and fresh coordinators, each its own process, on free loopback ports. */
import { credentials } from '@grpc/grpc-js';
import { FleetCa } from '@moefleet/coordinator/identity/fleet-ca';
import { COORDINATOR_NAME } from '@moefleet/runtime';
import { bearerInterceptor, FleetServiceClient, type GetFleetStatusResponse, IdentityServiceClient, OperatorServiceClient, RolloutServiceClient } from '@moefleet/proto';
import { Child } from '@moefleet/demo/child-process';
import { freePort } from '@moefleet/demo/free-port';
import { CLI_PATH } from '@moefleet/demo/local-fleet';
import { connects } from '@moefleet/demo/port-connects';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Address } from './hollow-fleet/fleet-orders';

/** A rollout of 10,000 devices in one message. */
const MOST_MESSAGE_BYTES = 256 * 1024 * 1024;
const START_TIMEOUT_MS = 30_000;

export interface StageOptions {
  telemetryIntervalMs: number;
  tls: boolean;
  /** flags for the coordinator's Node */
  nodeFlags: string[];
}

export interface OperatorAccess { caPem: string; token: string }

export class RunningCoordinator {
  readonly operator: OperatorServiceClient;
  readonly identities: IdentityServiceClient;
  readonly rollouts: RolloutServiceClient;
  private readonly fleet: FleetServiceClient;

  /** `access`: the fleet's CA in PEM and an operator's token; null: plaintext, without authentication. */
  constructor(readonly child: Child, private readonly ports: { gateway: number; operator: number; http: number }, access: OperatorAccess | null) {
    const address = `127.0.0.1:${ports.operator}`;
    const channel = access ? credentials.createSsl(Buffer.from(access.caPem)) : credentials.createInsecure();
    const options = { 'grpc.max_receive_message_length': MOST_MESSAGE_BYTES, 'grpc.ssl_target_name_override': COORDINATOR_NAME, interceptors: access ? [bearerInterceptor(access.token)] : [] };
    this.operator = new OperatorServiceClient(address, channel, options);
    this.identities = new IdentityServiceClient(address, channel, options);
    this.rollouts = new RolloutServiceClient(address, channel, options);
    this.fleet = new FleetServiceClient(address, channel, options);
  }

  close(): void {
    this.operator.close();
    this.identities.close();
    this.rollouts.close();
    this.fleet.close();
  }

  fleetStatus(): Promise<GetFleetStatusResponse> {
    return new Promise((resolve, reject) => { this.fleet.getFleetStatus({}, (error, status) => (error ? reject(error) : resolve(status))); });
  }

  get pid(): number { return this.child.pid!; }
  get gateway(): Address { return { host: '127.0.0.1', port: this.ports.gateway }; }

  /** Values of a metric by its labels as they are written, `''` where it has none. */
  async metric(name: string): Promise<Map<string, number>> {
    const text = await (await fetch(`http://127.0.0.1:${this.ports.http}/metrics`)).text();
    const values = new Map<string, number>();
    for (const line of text.split('\n')) {
      const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (match?.[1] === `moefleet_coordinator_${name}`) values.set(match[2] ?? '', Number(match[3]));
    }
    return values;
  }
}

export class Stage {
  readonly folder = mkdtempSync(join(tmpdir(), 'moefleet-load-'));
  readonly prefix = 'load';
  redisPort = 0;
  readonly coordinators: RunningCoordinator[] = [];
  private redis: Child | null = null;
  private readonly children: Child[] = [];
  private authority: FleetCa | null = null;
  private readonly ports: { gateway: number; operator: number; http: number }[] = [];

  constructor(private readonly options: StageOptions) {}

  /** null: plaintext */
  get tlsFolder(): string | null { return this.options.tls ? join(this.folder, 'fleet') : null; }
  private get adminTokenFile(): string { return join(this.folder, 'admin.token'); }
  get redisUrl(): string { return `redis://127.0.0.1:${this.redisPort}`; }
  get operatorPort(): number { return this.ports[0]!.operator; }
  get redisPid(): number { return this.redis!.pid!; }

  async startRedis(): Promise<void> {
    this.redisPort = await freePort();
    const folder = this.subfolder('redis');
    this.redis = Child.start({
      name: 'redis', command: 'redis-server', logPath: join(folder, 'redis.log'), keep: false,
      args: ['--port', String(this.redisPort), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'yes', '--notify-keyspace-events', 'Ex'],
    });
    await this.redis.until('an answer on its port', async () => (await connects(this.redisPort)) || null, START_TIMEOUT_MS);
  }

  /** The fleet's authority, where TLS is asked for. */
  async startAuthority(): Promise<void> {
    if (this.tlsFolder) this.authority = await FleetCa.create(this.tlsFolder, { name: 'load', hosts: [] }, Date.now());
  }

  /** Number `at` has the same ports at every start, so that agents find it again. */
  async startCoordinator(at = 0): Promise<RunningCoordinator> {
    this.ports[at] ??= { gateway: await freePort(), operator: await freePort(), http: await freePort() };
    const { gateway, operator, http } = this.ports[at];
    const logs = this.subfolder('logs');
    const child = Child.start({
      name: `coordinator ${at}`, command: process.execPath, keep: false, logPath: join(logs, `coordinator-${at}-${Date.now()}.log`),
      args: [
        ...this.options.nodeFlags, CLI_PATH, 'coordinator', 'run', '--redis-url', this.redisUrl, '--redis-prefix', this.prefix, '--coordinator-id', `coordinator-${at}`,
        '--gateway', `127.0.0.1:${gateway}`, '--operator', `127.0.0.1:${operator}`, '--http', `127.0.0.1:${http}`,
        '--telemetry-interval', String(this.options.telemetryIntervalMs), '--learn-every', '0',
        ...(this.tlsFolder ? ['--tls-dir', this.tlsFolder, '--admin-token-file', this.adminTokenFile] : []), '--log-level', process.env['MOEFLEET_LOAD_LOG'] ?? 'warn',
      ],
    });
    this.children.push(child);
    // The first admin is made before the HTTP server, so that the token lies there when that answers.
    await child.until('an answer on its gateway', async () => ((await connects(gateway)) && (await connects(http))) || null, START_TIMEOUT_MS);
    const access = this.authority ? { caPem: this.authority.certificatePem, token: readFileSync(this.adminTokenFile, 'utf8').trim() } : null;
    this.coordinators[at]?.close();
    this.coordinators[at] = new RunningCoordinator(child, this.ports[at], access);
    return this.coordinators[at];
  }

  async stop(): Promise<void> {
    for (const coordinator of this.coordinators) coordinator.close();
    await Promise.all(this.children.map((child) => child.stop()));
    await this.redis?.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private subfolder(name: string): string {
    const folder = join(this.folder, name);
    mkdirSync(folder, { recursive: true });
    return folder;
  }
}
