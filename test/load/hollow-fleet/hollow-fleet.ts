/** All hollow agents of a load, in as many processes as they need; orders go to all, answers are added up. */
import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { addFigures, type FleetFigures } from './fleet-counts';
import type { Address, AnswerMessage, Answers, FleetPlan, Order, OrderMessage } from './fleet-orders';

/** Compiled; this file lies in test/load/hollow-fleet or its dist. */
const PROCESS_PATH = join(__dirname, __dirname.includes('dist') ? '.' : join('..', 'dist', 'hollow-fleet'), 'fleet-process.js');
export const RECORDING_PATH = join(__dirname, __dirname.includes('dist') ? join('..', '..') : '..', 'recording', 'agent.recording.json');
/** Of one process: its event loop must not become what is measured, nor its descriptors run out. */
const MOST_AGENTS = 2500;
/** Hard bound of one load, whatever is asked for. */
const MOST_PROCESSES = 40;
const ANSWER_TIMEOUT_MS = 30_000;
/** With TLS it makes a key and a certificate for each agent first. */
const START_TIMEOUT_MS = 300_000;

export interface HollowFleetOptions {
  agents: number;
  gateways: Address[];
  perSecond: number;
  vanishing?: number;
  /** the fleet's folder; null: plaintext */
  tlsFolder: string | null;
}

interface Waiting { resolve(answer: unknown): void; reject(error: Error): void }

class Member {
  private readonly child: ChildProcess;
  private readonly waiting = new Map<number, Waiting>();
  private orders = 0;
  private readonly gone: Promise<void>;

  constructor() {
    this.child = fork(PROCESS_PATH, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: [] });
    this.child.on('message', (message: AnswerMessage) => {
      const waiting = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if ('failed' in message) waiting?.reject(new Error(message.failed));
      else waiting?.resolve(message.answer);
    });
    this.gone = new Promise((resolve) => this.child.once('exit', (code, signal) => {
      for (const waiting of this.waiting.values()) waiting.reject(new Error(`a process of hollow agents ended (${signal ?? code})`));
      resolve();
    }));
  }

  get pid(): number { return this.child.pid!; }

  order<T extends Order['t']>(order: Extract<Order, { t: T }>): Promise<Answers[T]> {
    const id = this.orders += 1;
    return new Promise<Answers[T]>((resolve, reject) => {
      const timeoutMs = order.t === 'start' ? START_TIMEOUT_MS : ANSWER_TIMEOUT_MS;
      const timer = setTimeout(() => reject(new Error(`a process of hollow agents did not answer "${order.t}" within ${timeoutMs / 1000} s`)), timeoutMs);
      const settle = <V>(then: (value: V) => void) => (value: V) => { clearTimeout(timer); then(value); };
      this.waiting.set(id, { resolve: settle(resolve as (answer: unknown) => void), reject: settle(reject) });
      this.child.send({ id, order } satisfies OrderMessage, (error) => { if (error) this.waiting.get(id)?.reject(error); });
    });
  }

  async stop(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    await this.order({ t: 'stop' }).catch(() => this.child.kill('SIGKILL'));
    await this.gone;
  }
}

export class HollowFleet {
  private readonly members: Member[] = [];

  constructor(private readonly options: HollowFleetOptions) {}

  get pids(): number[] { return this.members.map((member) => member.pid); }

  /** Begins to connect them; `figures().open` tells how far it has come. */
  async start(): Promise<void> {
    const { agents, perSecond, gateways, tlsFolder, vanishing = 0 } = this.options;
    const processes = Math.ceil(agents / MOST_AGENTS);
    if (processes > MOST_PROCESSES) throw new Error(`--agents ${agents}: at most ${MOST_PROCESSES * MOST_AGENTS}`);
    for (let at = 0; at < processes; at += 1) this.members.push(new Member());
    await Promise.all(this.members.map((member, at) => {
      const first = Math.floor(agents * at / processes);
      const count = Math.floor(agents * (at + 1) / processes) - first;
      const plan: FleetPlan = { first, count, gateways, perSecond: perSecond / processes, recordingPath: RECORDING_PATH, tlsFolder, vanishing: Math.ceil(vanishing / processes) };
      return member.order({ t: 'start', plan });
    }));
  }

  async figures(): Promise<FleetFigures> {
    return addFigures(await this.all({ t: 'figures' }));
  }

  async expect(lambda: number): Promise<void> {
    await this.all({ t: 'expect', lambda });
  }

  /** Milliseconds since 1970 at which each agent had applied the λ expected, in order. */
  async arrivals(): Promise<number[]> {
    return (await this.all<'arrivals'>({ t: 'arrivals' })).flat().sort((a, b) => a - b);
  }

  /** Which of these have had a stream for that long. */
  async connected(ids: string[], forMs: number): Promise<string[]> {
    return (await this.all<'connected'>({ t: 'connected', ids, forMs })).flat();
  }

  async generations(): Promise<Record<string, string>> {
    return Object.assign({}, ...await this.all<'generations'>({ t: 'generations' })) as Record<string, string>;
  }

  async quiet(on: boolean): Promise<void> {
    await this.all({ t: 'quiet', on });
  }

  /** Decoded tokens that the frames of all agents have told of; no frame follows. */
  async hush(): Promise<number> {
    return (await this.all<'hush'>({ t: 'hush' })).reduce((sum, tokens) => sum + tokens, 0);
  }

  async churn(perSecond: number): Promise<void> {
    await this.all({ t: 'churn', perSecond: perSecond / this.members.length });
  }

  async stall(agents: number): Promise<number> {
    return (await this.all<'stall'>({ t: 'stall', agents: Math.ceil(agents / this.members.length) })).reduce((sum, count) => sum + count, 0);
  }

  async vanish(): Promise<number> {
    return (await this.all<'vanish'>({ t: 'vanish' })).reduce((sum, count) => sum + count, 0);
  }

  async stop(): Promise<void> {
    await Promise.all(this.members.map((member) => member.stop()));
  }

  private all<T extends Order['t']>(order: Extract<Order, { t: T }>): Promise<Answers[T][]> {
    return Promise.all(this.members.map((member) => member.order<T>(order)));
  }
}
