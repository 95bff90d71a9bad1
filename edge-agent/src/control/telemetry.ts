/** Takes a telemetry frame: what the engine has counted since this boot began, where its misses went, and the memory. */
import type { LayerCounters, TelemetryFrame } from '@moefleet/proto';
import type { TraceReport } from '../engine-queue';
import type { EngineHostClient } from '../host/host-client';
import { CounterSum } from './counter-sum';
import { availableBytes, memoryPressurePercent, residentBytes } from './process-memory';
import type { EngineCounters } from '../native';

/** An engine host that does not answer in time is told of with the figures known last. */
const COUNTERS_TIMEOUT_MS = 2_000;

export interface TelemetrySources {
  host: EngineHostClient;
  traces: TraceReport;
  requests: () => { ended: number; failed: number };
  windows: () => { sent: number; dropped: number };
  memory: { readonly limitBytes: number | null; readonly counts: { shrink: number; grow: number } };
}

export class Telemetry {
  private readonly sum = new CounterSum();
  private sequence = 0n;

  constructor(private readonly sources: TelemetrySources) {}

  async take(): Promise<TelemetryFrame> {
    const { host, traces, memory } = this.sources;
    // Read before the question: an answer comes from this start or not at all.
    const start = host.starts;
    const counters = this.sum.read(start, await within(COUNTERS_TIMEOUT_MS, host.counters()));
    const { hits, misses, swaps } = this.sum.slots();
    this.sequence += 1n;
    const requests = this.sources.requests();
    const windows = this.sources.windows();
    const last = traces.lastTrace();
    const account = traces.account();
    return {
      sequence: this.sequence,
      timeMs: BigInt(Date.now()),
      hostStarts: host.starts,
      requests: BigInt(requests.ended),
      requestsFailed: BigInt(requests.failed),
      ...engineFigures(counters),
      decodeSlots: { hits: BigInt(hits), misses: BigInt(misses), swaps: BigInt(swaps) },
      misses: {
        counted: BigInt(account.counted), exported: BigInt(account.exported), spooled: BigInt(account.spooled),
        dropped: BigInt(account.dropped), unsampled: BigInt(account.unsampled),
      },
      lastTrace: last ? { requestId: last.requestId, traceIds: [...last.traceIds], misses: BigInt(last.misses), timeMs: BigInt(Math.round(last.timeMs)) } : undefined,
      rssBytes: BigInt(residentBytes(process.pid) + residentBytes(host.pid)),
      memoryPressurePercent: memoryPressurePercent() ?? undefined,
      memoryAvailableBytes: BigInt(availableBytes()),
      cacheLimitBytes: memory.limitBytes === null ? undefined : BigInt(memory.limitBytes),
      cacheShrinks: BigInt(memory.counts.shrink),
      routerWindowsSent: BigInt(windows.sent),
      routerWindowsDropped: BigInt(windows.dropped),
    };
  }
}

async function within<T>(timeoutMs: number, answer: Promise<T>): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), timeoutMs);
  });
  return Promise.race([answer, late]).finally(() => clearTimeout(timer));
}

function engineFigures(counters: EngineCounters) {
  const overLayers = (field: 'resizeEvictions' | 'pressureEvictions' | 'warmFills') => BigInt(counters.layers.reduce((sum, layer) => sum + layer[field], 0));
  return {
    resizeEvictions: overLayers('resizeEvictions'),
    pressureEvictions: overLayers('pressureEvictions'),
    warmFills: overLayers('warmFills'),
    warmBytes: BigInt(counters.warmBytes),
    prefillTokens: BigInt(counters.prefillTokens),
    decodeTokens: BigInt(counters.decodeTokens),
    prefillNs: BigInt(Math.round(counters.prefillNs)),
    decodeNs: BigInt(Math.round(counters.decodeNs)),
    stallNs: BigInt(Math.round(counters.stallNs)),
    flashBytes: BigInt(counters.flashBytes),
    evaluationBytes: BigInt(counters.evaluationBytes),
    flashReads: BigInt(counters.flashReads),
    readMicrosLog2: counters.readMicrosLog2.map((count) => BigInt(count)),
    layers: counters.layers.map((layer): LayerCounters => ({
      layer: layer.layer, capacity: layer.capacity, resident: layer.resident,
      hits: BigInt(layer.hits), misses: BigInt(layer.misses), swaps: BigInt(layer.swaps),
      prefillHits: BigInt(layer.prefillHits), prefillMisses: BigInt(layer.prefillMisses),
      massLost: layer.massLost, events: BigInt(layer.events), rangeMean: layer.rangeMean,
    })),
  };
}
