/**
 * The server side as deploy/compose describes it, without a container engine: the coordinators with the settings of
 * compose.yaml and haproxy and Prometheus with their own files. Each service has a loopback address of its own in place
 * of the name that it has among containers, so that ports are those of the files.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { Child } from '../../services/demo/src/child-process';
import { REPO } from './paths';
import { until } from './ports';

export const COMPOSE = join(REPO, 'deploy', 'compose');

interface Service { command: string[]; environment?: Record<string, string>; }

/** What docker-compose, which reads merges and variables as it does when it starts things, makes of compose.yaml. */
export function composedServices(): Record<string, Service> {
  const env = { ...process.env };
  for (const name of Object.keys(env)) if (name.startsWith('MOEFLEET_')) delete env[name];
  return (parse(execFileSync('docker-compose', ['-f', join(COMPOSE, 'compose.yaml'), '--profile', 'learner', 'config'], { encoding: 'utf8', env })) as { services: Record<string, Service> }).services;
}

export class ServerSide {
  readonly fleetFolder: string;
  private readonly services = composedServices();
  private readonly addresses: Record<string, string>;
  private readonly children: Child[] = [];

  /** `folder`: for everything that they write. */
  constructor(private readonly folder: string, private readonly redisUrl: string) {
    this.fleetFolder = join(folder, 'fleet');
    const net = `127.${100 + (process.pid >> 16) % 100}.${(process.pid >> 8) % 256}`;
    const first = 8 * (process.pid % 30) + 1;
    this.addresses = Object.fromEntries(['coordinator-1', 'coordinator-2', 'balancer', 'prometheus', 'collector'].map((name, at) => [name, `${net}.${first + at}`]));
  }

  address(service: string): string {
    return this.addresses[service]!;
  }

  /** As the service fleet-init does. */
  initFleet(): void {
    execFileSync(process.execPath, [CLI_PATH, 'fleet', 'init', '--dir', this.fleetFolder, '--name', 'fleet', '--host', this.address('balancer')]);
  }

  async startCoordinator(name: string): Promise<Child> {
    const { command, environment } = this.services[name]!;
    const at = (value: string) => value.replace(/^0\.0\.0\.0:/, `${this.address(name)}:`).replace(/^\/fleet\b/, this.fleetFolder).replace(/^redis:\/\/redis:6379$/, this.redisUrl);
    const child = this.start(name, process.execPath, [CLI_PATH, ...command], Object.fromEntries(Object.entries(environment!).map(([key, value]) => [key, at(String(value))])));
    await child.logLine('listening');
    return child;
  }

  /** For few connections: more take descriptors that not every machine allows. */
  async startBalancer(): Promise<Child> {
    const few = (text: string) => text.replace('maxconn 60000', 'maxconn 1000');
    const config = this.configuration('haproxy.cfg', (text) => few(text).replace(/bind :/g, `bind ${this.address('balancer')}:`));
    return this.start('balancer', 'haproxy', ['-db', '-f', config]);
  }

  /** With seconds between scrapes in place of a quarter of a minute. */
  async startPrometheus(): Promise<Child> {
    const config = this.configuration('prometheus.yml', (text) => text.replace(/_interval: 15s/g, '_interval: 1s'));
    this.configuration('alerts.yml', (text) => text.replace(/for: 1m\b/g, 'for: 2s'));
    const child = this.start('prometheus', 'prometheus', [`--config.file=${config}`, `--storage.tsdb.path=${join(this.folder, 'prometheus')}`, `--web.listen-address=${this.address('prometheus')}:9090`]);
    await until('Prometheus answers', async () => (await fetch(`http://${this.address('prometheus')}:9090/-/ready`)).ok);
    return child;
  }

  /** Jaeger's binary is a collector too. `exportTo`: base address in place of Jaeger's. Decides soon, and sends what it keeps as it is. */
  async startCollector(binary: string, file: string, exportTo: string): Promise<Child> {
    const at = (text: string) => text.replace('http://jaeger:4318', `${exportTo}\n    compression: none`).replace('decision_wait: 30s', 'decision_wait: 1s').replaceAll('0.0.0.0', this.address('collector'));
    const child = this.start('collector', binary, ['--config', this.configuration(file, at)], { OTEL_TRACES_SAMPLER: 'always_off' });
    await child.until('an answer', async () => ((await fetch(`http://${this.address('collector')}:4318`).then(() => true, () => null))), 30_000);
    return child;
  }

  start(name: string, command: string, args: string[], env: Record<string, string> = {}): Child {
    const child = Child.start({ name, command, args, env: { MOEFLEET_LOG_LEVEL: 'info', ...env }, logPath: join(this.folder, `${name}-${this.children.length}.log`), keep: false });
    this.children.push(child);
    return child;
  }

  async stop(): Promise<void> {
    for (const child of this.children.reverse()) await child.stop();
  }

  /** A copy of a file of deploy/compose, with addresses in place of names. */
  private configuration(file: string, change: (text: string) => string): string {
    mkdirSync(this.folder, { recursive: true });
    const path = join(this.folder, file);
    const named = new RegExp(`\\b(${Object.keys(this.addresses).join('|')}):(?=\\d)`, 'g');
    writeFileSync(path, change(readFileSync(join(COMPOSE, file), 'utf8')).replace(named, (_, name: string) => `${this.address(name)}:`));
    return path;
  }
}
