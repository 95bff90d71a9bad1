/**
 * The agent's Prometheus metrics, in registries of their own. What the engine and the trace side count is read when
 * it is scraped; only requests are counted here. Engine counters begin again with each start of the engine host.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { EngineHost } from '../engine-host';
import type { EngineQueue, TraceReport } from '../engine-queue';
import type { EngineCounters } from '../native';

/** A scrape must not hang on an engine host that does not answer. */
const ENGINE_ANSWER_MS = 2000;

export interface AgentMetricsOptions {
  host: EngineHost;
  queue: EngineQueue & { readonly running: boolean };
  traces: TraceReport;
  spool: { readonly bytes: number; readonly batches: number; readonly droppedSpans: number };
  exporter: { readonly exportedSpans: number };
}

export type RequestOutcomeLabel = 'ok' | 'refused' | 'failed' | 'cancelled';

export class AgentMetrics {
  private readonly registry = new Registry();
  private readonly requests: Counter<'operation' | 'outcome'>;
  private readonly durations: Histogram<'operation'>;
  private readonly engineRegistry = new Registry();
  private readonly engine: ((counters: EngineCounters) => void)[] = [];

  constructor(private readonly options: AgentMetricsOptions) {
    const registers = [this.registry];
    this.requests = new Counter({ name: 'moefleet_agent_requests_total', help: 'Completion requests by outcome.', labelNames: ['operation', 'outcome'], registers });
    this.durations = new Histogram({
      name: 'moefleet_agent_request_duration_seconds', help: 'Completion requests from arrival to answer, waiting included.',
      labelNames: ['operation'], buckets: [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300], registers,
    });
    this.addState();
    this.addEngine();
  }

  requestEnded(operation: string, outcome: RequestOutcomeLabel, seconds: number): void {
    this.requests.inc({ operation, outcome });
    if (outcome === 'ok') this.durations.observe({ operation }, seconds);
  }

  get contentType(): string {
    return this.registry.contentType;
  }

  /** The exposition text. Engine figures are left out while no engine is loaded. */
  async text(): Promise<string> {
    const counters = await this.readCounters();
    if (counters) for (const set of this.engine) set(counters);
    const texts = [this.registry, ...(counters ? [this.engineRegistry] : [])].map((registry) => registry.metrics());
    return (await Promise.all(texts)).join('\n');
  }

  private async readCounters(): Promise<EngineCounters | null> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<null>((resolve) => { timer = setTimeout(() => resolve(null), ENGINE_ANSWER_MS); });
    return Promise.race([this.options.host.counters().catch(() => null), late]).finally(() => clearTimeout(timer));
  }

  private addState(): void {
    const { host, queue, traces, spool, exporter } = this.options;
    this.gauge('moefleet_agent_ready', '1 while a model is loaded and requests are served.', () => (host.state.t === 'ready' ? 1 : 0));
    this.gauge('moefleet_agent_queue_waiting', 'Requests waiting for the engine.', () => queue.waiting);
    this.gauge('moefleet_agent_queue_running', 'Requests the engine works on, 0 or 1.', () => (queue.running ? 1 : 0));
    this.total('moefleet_agent_host_starts_total', 'Starts of the engine host.', () => host.starts);
    this.total('moefleet_agent_host_crashes_total', 'Ends of the engine host that nobody asked for.', () => host.crashes);
    this.gauge('moefleet_agent_spool_bytes', 'Bytes of spans waiting on disk.', () => spool.bytes);
    this.gauge('moefleet_agent_spool_batches', 'Batches of spans waiting on disk.', () => spool.batches);
    this.total('moefleet_agent_spans_exported_total', 'Spans a collector has taken.', () => exporter.exportedSpans);
    this.total('moefleet_agent_spans_dropped_total', 'Spans lost to the spool bound, to the disk or to a refusing collector.', () => spool.droppedSpans);
    const registers = [this.registry];
    new Gauge({
      name: 'moefleet_agent_miss_account', help: 'Where the counted misses are: counted = exported + spooled + dropped + unsampled.',
      labelNames: ['place'], registers,
      collect() {
        for (const [place, misses] of Object.entries(traces.account())) this.set({ place }, misses);
      },
    });
  }

  private addEngine(): void {
    const sum = (counters: EngineCounters, field: 'hits' | 'misses' | 'swaps' | 'prefillHits' | 'prefillMisses' | 'resizeEvictions' | 'pressureEvictions' | 'warmFills') =>
      counters.layers.reduce((total, layer) => total + layer[field], 0);
    this.engineTotal('hits', 'Selected experts that were resident.', { prefill: (c) => sum(c, 'prefillHits'), decode: (c) => sum(c, 'hits') });
    this.engineTotal('misses', 'Selected experts that were not resident.', { prefill: (c) => sum(c, 'prefillMisses'), decode: (c) => sum(c, 'misses') });
    this.engineTotal('tokens', 'Tokens worked on.', { prefill: (c) => c.prefillTokens, decode: (c) => c.decodeTokens });
    this.engineTotal('seconds', 'Time spent.', { prefill: (c) => c.prefillNs / 1e9, decode: (c) => c.decodeNs / 1e9 });
    this.engineTotal('swaps', 'Selected experts outside the unbiased top-K.', { decode: (c) => sum(c, 'swaps') });
    this.engineTotal('capacity_evictions', 'Experts that left for a smaller capacity: a spec\'s, or one that memory pressure asked for.', { spec: (c) => sum(c, 'resizeEvictions'), pressure: (c) => sum(c, 'pressureEvictions') }, 'reason');
    this.engineTotal('warm_fills', 'Experts that a warm list has brought into the cache; neither hits nor misses.', { all: (c) => sum(c, 'warmFills') });
    this.engineTotal('warm_bytes', 'Expert bytes read for a warm list; not in flash_bytes.', { all: (c) => c.warmBytes });
    this.engineTotal('flash_bytes', 'Expert bytes read from flash.', { all: (c) => c.flashBytes });
    this.engineTotal('flash_reads', 'Positioned reads of flash.', { all: (c) => c.flashReads });
    this.engineTotal('stall_seconds', 'Time the compute thread stood still for reads.', { all: (c) => c.stallNs / 1e9 });
    this.engineTotal('miss_events_dropped', 'Misses whose event was lost.', { all: (c) => c.missEventsDropped });
    const registers = [this.engineRegistry];
    const resident = new Gauge({ name: 'moefleet_agent_resident_experts', help: 'Experts resident per MoE layer.', labelNames: ['layer'], registers });
    const capacity = new Gauge({ name: 'moefleet_agent_capacity_experts', help: 'Experts that may be resident per MoE layer.', labelNames: ['layer'], registers });
    this.engine.push((counters) => {
      resident.reset();
      capacity.reset();
      for (const layer of counters.layers) {
        resident.set({ layer: layer.layer }, layer.resident);
        capacity.set({ layer: layer.layer }, layer.capacity);
      }
    });
  }

  /** One counter, set to what the engine has counted; `parts` by the values of its label. */
  private engineTotal(name: string, help: string, parts: Record<string, (counters: EngineCounters) => number>, label = 'phase'): void {
    const registers = [this.engineRegistry];
    const counter = new Counter({ name: `moefleet_agent_${name}_total`, help, labelNames: [label], registers });
    this.engine.push((counters) => {
      counter.reset();
      for (const [part, read] of Object.entries(parts)) counter.inc({ [label]: part }, read(counters));
    });
  }

  private gauge(name: string, help: string, read: () => number): void {
    new Gauge({ name, help, registers: [this.registry], collect() { this.set(read()); } });
  }

  private total(name: string, help: string, read: () => number): void {
    new Counter({ name, help, registers: [this.registry], collect() { this.reset(); this.inc(read()); } });
  }
}
