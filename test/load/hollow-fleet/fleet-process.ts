/** A process with some thousand hollow agents. Takes orders from the process that started it, and ends with it. */
import { createHash } from 'node:crypto';
import type { DeviceSpec } from '@moefleet/proto';
import { DesiredAnswers } from './desired-answers';
import { FleetCounts } from './fleet-counts';
import type { Address, AnswerMessage, FleetPlan, Order, OrderMessage } from './fleet-orders';
import { makeCertificates } from './certificates';
import type { ClientTls, GrpcCall, Target } from './grpc-stream';
import { HollowAgent } from './hollow-agent';
import { type Recording, readRecording } from './recording';
import { Relay } from './relay';
import { TickWheel } from './tick-wheel';

const RAMP_EVERY_MS = 50;
/** Where nobody listens a balancer sends nobody for a while. */
const LEAVE_OUT_MS = 5000;
/** More handshakes at once than the machine has time for would all miss their deadline, and begin again for ever. */
const MOST_CONNECTING = 64;

class FleetProcess {
  private readonly wheel = new TickWheel();
  private readonly counts = new FleetCounts();
  private readonly answers = new DesiredAnswers();
  private readonly agents: HollowAgent[] = [];
  private readonly timers: NodeJS.Timeout[] = [];
  private readonly hanging: GrpcCall[] = [];
  private gateways: Address[] = [];
  /** when a connection to this port was refused last */
  private readonly refusedMs = new Map<number, number>();
  private certificates: Map<string, ClientTls> | null = null;
  private expected: number | null = null;
  private readonly arrivals = new Map<string, number>();
  private churnTimer: NodeJS.Timeout | undefined;
  private readonly relay = new Relay(() => this.gateway());
  /** agents that go through the relay, until they vanish */
  private readonly relayed = new Set<string>();
  private relayPort = 0;

  async obey(order: Order): Promise<unknown> {
    switch (order.t) {
      case 'start': return this.start(order.plan);
      case 'figures': return this.counts.figures();
      case 'expect': this.expected = order.lambda; this.arrivals.clear(); return null;
      case 'arrivals': return [...this.arrivals.values()];
      case 'connected': { const open = new Set(this.agents.filter((agent) => agent.openMs >= order.forMs).map((agent) => agent.id)); return order.ids.filter((id) => open.has(id)); }
      case 'churn': return this.churn(order.perSecond);
      case 'stall': return this.some(order.agents).map((agent) => agent.read(false)).length;
      case 'vanish': return this.vanish();
      case 'generations': return Object.fromEntries(this.agents.map((agent) => [agent.id, String(agent.generation)]));
      case 'quiet': for (const agent of this.agents) agent.quiet(order.on); return null;
      case 'hush': for (const agent of this.agents) agent.hush(); return Number(this.agents.reduce((sum, agent) => sum + agent.tokensTold, 0n));
      case 'stop': return this.stop();
    }
  }

  private async start(plan: FleetPlan): Promise<null> {
    this.gateways = plan.gateways;
    if (plan.vanishing > 0) this.relayPort = await this.relay.listen();
    const recording = readRecording(plan.recordingPath);
    this.wheel.start();
    for (let at = plan.first; at < plan.first + plan.count; at += 1) {
      const id = `hollow-${at}`;
      if (at < plan.first + plan.vanishing) this.relayed.add(id);
      this.agents.push(this.agent(id, recording));
    }
    if (plan.tlsFolder !== null) this.certificates = await makeCertificates(plan.tlsFolder, this.agents);
    let started = 0;
    const begunMs = Date.now();
    const ramp = setInterval(() => {
      const due = Math.min(plan.count, this.counts.open + MOST_CONNECTING, Math.ceil(plan.perSecond * (Date.now() - begunMs) / 1000));
      while (started < due) this.agents[started++]!.start();
      if (started === plan.count) clearInterval(ramp);
    }, RAMP_EVERY_MS);
    this.timers.push(ramp);
    return null;
  }

  private agent(id: string, recording: Recording): HollowAgent {
    return new HollowAgent({
      id, recording, wheel: this.wheel, counts: this.counts, answers: this.answers,
      target: () => this.target(id),
      onRefused: ({ port }) => { this.refusedMs.set(port, Date.now()); },
      onApplied: (spec) => this.note(id, spec),
    });
  }

  private target(id: string): Target {
    const address = this.relayed.has(id) ? { host: '127.0.0.1', port: this.relayPort } : this.gateway();
    return { ...address, tls: this.certificates?.get(id) ?? null };
  }

  private gateway(): Address {
    const nowMs = Date.now();
    const up = this.gateways.filter(({ port }) => nowMs - (this.refusedMs.get(port) ?? 0) > LEAVE_OUT_MS);
    const among = up.length > 0 ? up : this.gateways;
    return among[Math.floor(Math.random() * among.length)]!;
  }

  private note(id: string, { lambda }: DeviceSpec): void {
    if (this.expected === null || lambda !== this.expected || this.arrivals.has(id)) return;
    this.arrivals.set(id, performance.timeOrigin + performance.now());
  }

  private churn(perSecond: number): null {
    clearInterval(this.churnTimer);
    if (perSecond > 0) this.churnTimer = setInterval(() => { for (const agent of this.some(1)) agent.reboot(); }, 1000 / perSecond);
    return null;
  }

  /** Connected ones, spread by their ids. */
  private some(count: number): HollowAgent[] {
    const open = this.agents.filter((agent) => agent.open);
    const order = (agent: HollowAgent) => createHash('md5').update(`${agent.id}:${this.counts.welcomes}`).digest('hex');
    return open.map((agent) => ({ agent, key: order(agent) })).sort((a, b) => (a.key < b.key ? -1 : 1)).slice(0, count).map(({ agent }) => agent);
  }

  /** Those behind the relay: it freezes, and they dial past it. */
  private vanish(): number {
    this.relay.freeze();
    const leaving = this.agents.filter((agent) => this.relayed.has(agent.id));
    this.relayed.clear();
    const calls = leaving.flatMap((agent) => agent.abandon() ?? []);
    this.hanging.push(...calls);
    return calls.length;
  }

  private stop(): null {
    for (const timer of this.timers) clearInterval(timer);
    clearInterval(this.churnTimer);
    this.wheel.stop();
    for (const agent of this.agents) agent.stop();
    for (const call of this.hanging) call.destroy();
    this.relay.close();
    return null;
  }
}

const fleet = new FleetProcess();
process.on('disconnect', () => process.exit(0));
process.on('SIGINT', () => {});
process.on('message', ({ id, order }: OrderMessage) => {
  fleet.obey(order).then(
    (answer) => process.send!({ id, answer } satisfies AnswerMessage, undefined, {}, () => { if (order.t === 'stop') process.exit(0); }),
    (error: Error) => process.send!({ id, failed: error.message } satisfies AnswerMessage),
  );
});
