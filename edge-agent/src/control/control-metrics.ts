/** The agent's metrics with what the control side knows: which spec is in force, and whether the coordinator is there. */
import { Counter, Gauge, Registry } from 'prom-client';
import { AgentMetrics, type AgentMetricsOptions } from '../http';
import type { InForce } from './desired-applier';
import { residentBytes } from './process-memory';

export interface ControlSources {
  inForce: () => InForce | null;
  connected: () => boolean;
  windows: () => { sent: number; dropped: number };
  /** process ids whose memory is the agent's */
  processes: () => (number | null)[];
}

export class ControlMetrics extends AgentMetrics {
  private readonly control = new Registry();

  constructor(options: AgentMetricsOptions, { inForce, connected, windows, processes }: ControlSources) {
    super(options);
    this.value('lambda', 'Strength in force of the pull towards resident experts, the least of all layers; absent before the first model.', () => inForce()?.effective.routing.lambda ?? null);
    this.choice('routing', 'method', 'How experts are chosen: 1 for the method in force.', () => inForce()?.effective.routing.routing ?? null);
    this.choice('eviction', 'policy', 'Who leaves a full cache: 1 for the policy in force.', () => inForce()?.effective.routing.eviction ?? null);
    this.value('top_j', 'Best experts of a token that are never displaced.', () => inForce()?.effective.routing.topJ ?? null);
    this.value('generation', 'Generation of the spec in force; 0 for none.', () => (inForce() ? Number(inForce()!.record.generation) : null));
    this.value('cache_bytes', 'Bytes of experts that may be resident.', () => inForce()?.effective.cacheBytes ?? null);
    this.value('trace_ratio', 'Share of requests traced.', () => inForce()?.effective.traceRatio ?? null);
    this.value('connected', '1 while the stream to the coordinator is up.', () => (connected() ? 1 : 0));
    this.value('rss_bytes', 'Resident set of supervisor and engine host.', () => processes().reduce<number>((sum, pid) => sum + residentBytes(pid), 0));
    new Counter({
      name: 'moefleet_agent_router_windows_total', help: 'Windows of router logits by outcome.', labelNames: ['outcome'], registers: [this.control],
      collect() {
        this.reset();
        for (const [outcome, count] of Object.entries(windows())) this.inc({ outcome }, count);
      },
    });
  }

  override async text(): Promise<string> {
    return `${(await super.text()).trimEnd()}\n\n${await this.control.metrics()}`;
  }

  /** A gauge of 1 whose label says which. */
  private choice(name: string, label: string, help: string, read: () => string | null): void {
    new Gauge({
      name: `moefleet_agent_${name}`, help, labelNames: [label], registers: [this.control],
      collect() {
        this.reset();
        const now = read();
        if (now !== null) this.set({ [label]: now }, 1);
      },
    });
  }

  /** null leaves the metric without a sample. */
  private value(name: string, help: string, read: () => number | null): void {
    new Gauge({
      name: `moefleet_agent_${name}`, help, registers: [this.control],
      collect() {
        const now = read();
        if (now === null) this.remove();
        else this.set(now);
      },
    });
  }
}
