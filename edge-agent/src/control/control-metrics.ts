/** The agent's metrics with what the control side knows: which spec is in force, and whether the coordinator is there. */
import { Counter, Gauge, Registry } from 'prom-client';
import { AgentMetrics, type AgentMetricsOptions } from '../http';
import type { InForce } from './desired-applier';
import { availableBytes, memoryPressurePercent, residentBytes } from './process-memory';

export interface ControlSources {
  inForce: () => InForce | null;
  connected: () => boolean;
  windows: () => { sent: number; dropped: number };
  /** process ids whose memory is the agent's */
  processes: () => (number | null)[];
  /** bytes of models that came from others, and went to devices beside this one */
  models: () => { arrived: Record<string, number>; served: number };
  /** what memory pressure has done to the cache */
  memory: { readonly limitBytes: number | null; readonly counts: { shrink: number; grow: number } };
}

export class ControlMetrics extends AgentMetrics {
  private readonly control = new Registry();

  constructor(options: AgentMetricsOptions, { inForce, connected, windows, processes, models, memory }: ControlSources) {
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
    this.value('memory_available_bytes', 'Memory that could be taken now, within the control group\'s limit.', availableBytes);
    this.value('memory_pressure_percent', 'Share of the last 10 s in which some task stood still for memory; absent where the kernel does not tell.', memoryPressurePercent);
    this.value('cache_limit_bytes', 'Most bytes of experts while memory is short; absent while it is not.', () => memory.limitBytes);
    new Counter({
      name: 'moefleet_agent_cache_changes_total', help: 'Times the cache gave way to others\' need of memory, or grew again.', labelNames: ['change'], registers: [this.control],
      collect() {
        this.reset();
        for (const [change, count] of Object.entries(memory.counts)) this.inc({ change }, count);
      },
    });
    new Counter({
      name: 'moefleet_agent_model_bytes_total', help: 'Bytes of models by where they came from, what had to be thrown away included, and bytes sent to devices beside this one (to="peers").',
      labelNames: ['from', 'to'], registers: [this.control],
      collect() {
        this.reset();
        const { arrived, served } = models();
        for (const [from, bytes] of Object.entries(arrived)) this.inc({ from, to: 'here' }, bytes);
        this.inc({ from: 'here', to: 'peers' }, served);
      },
    });
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
