/** The programs that faults happen to, each a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort, until } from '../../harness/ports';
import { type AgentStep, type AgentTold, JOURNAL, type JournalEntry, readJournal, type ScriptedAgentOptions, STATE } from './agent-journal';

const HOOK = join(__dirname, '../../harness/typescript.js');
/** Short, so that what takes a lease's life takes no longer; long enough for a busy machine. */
const TUNING = { leaseTtlMs: 2400, rolloutLockMs: 1500, keepalive: { timeMs: 600, timeoutMs: 600 } };

/** On a machine that has much else to do. */
const START_TIMEOUT_MS = 90_000;

abstract class FaultProcess {
  protected child: ChildProcess | null = null;

  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.child!.kill(signal);
  }

  /** As a crash does; a stopped one too. */
  kill(): Promise<void> {
    return this.end('SIGKILL');
  }

  protected async end(signal: NodeJS.Signals): Promise<void> {
    const { child } = this;
    this.child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(signal);
    await ended;
  }
}

export class CoordinatorProcess extends FaultProcess {
  private ports: { gateway: number; operator: number; http: number } | null = null;

  constructor(readonly id: string, private readonly redisUrl: string, private readonly prefix: string) {
    super();
  }

  get gateway(): { host: string; port: number } { return { host: '127.0.0.1', port: this.ports!.gateway }; }
  get operator(): string { return `127.0.0.1:${this.ports!.operator}`; }

  /** The same ports at every start, so that agents find it again. */
  async start(): Promise<void> {
    this.ports ??= { gateway: await freePort(), operator: await freePort(), http: await freePort() };
    const at = (port: number) => `127.0.0.1:${port}`;
    const settings = {
      MOEFLEET_REDIS_URL: this.redisUrl, MOEFLEET_REDIS_PREFIX: this.prefix, MOEFLEET_COORDINATOR_ID: this.id, MOEFLEET_LEARN_EVERY: '0', MOEFLEET_TELEMETRY_INTERVAL_MS: '200',
      MOEFLEET_GATEWAY_LISTEN: at(this.ports.gateway), MOEFLEET_OPERATOR_LISTEN: at(this.ports.operator), MOEFLEET_HTTP_LISTEN: at(this.ports.http),
    };
    this.child = spawn(process.execPath, [join(__dirname, 'coordinator-process.mjs'), JSON.stringify({ settings, tuning: TUNING })], { stdio: ['ignore', 'inherit', 'inherit'] });
    await until(`${this.id} answers`, () => this.metric('streams').then(() => true), START_TIMEOUT_MS);
  }

  async metric(name: string): Promise<number> {
    const text = await (await fetch(`http://127.0.0.1:${this.ports!.http}/metrics`)).text();
    const line = new RegExp(`^moefleet_coordinator_${name} (\\S+)$`, 'm').exec(text);
    if (!line) throw new Error(`no metric ${name}`);
    return Number(line[1]);
  }
}

export class AgentProcess extends FaultProcess {
  private readonly told: AgentTold[] = [];

  constructor(readonly id: string, private readonly coordinator: string, private readonly folder: string) {
    super();
    mkdirSync(join(folder, STATE), { recursive: true });
    writeFileSync(join(folder, JOURNAL), '');
  }

  start(): void {
    const options: ScriptedAgentOptions = { id: this.id, coordinator: this.coordinator, folder: this.folder };
    this.child = spawn(process.execPath, ['-r', HOOK, join(__dirname, 'scripted-agent.ts'), JSON.stringify(options)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    this.child.on('message', (message) => this.told.push(message as AgentTold));
  }

  hold(step: AgentStep): void {
    writeFileSync(join(this.folder, `hold-${step}`), '');
  }

  release(step: AgentStep): void {
    rmSync(join(this.folder, `hold-${step}`), { force: true });
  }

  /** Resolves when it is, or has been, at a step of the spec with this λ. */
  async reaches(step: AgentStep, lambda: number): Promise<void> {
    await until(`${this.id} is at "${step}" with lambda ${lambda}`, () => this.told.some((told) => told.at === step && told.lambda === lambda), 20_000, 5);
  }

  get journal(): JournalEntry[] {
    return readJournal(this.folder);
  }

  /** What its engine was given last. */
  lastRun(): { generation: number; lambda: number } | undefined {
    return this.journal.flatMap((entry) => (entry.t === 'ran' ? [entry] : [])).at(-1);
  }
}
