/**
 * Reports to the coordinator which experts the device's tokens wanted: what was counted since the report before, at the
 * pace that the coordinator asks for, jittered. A report that is lost costs the fleet's lists nothing but itself. Nothing
 * is reported below LEAST_TOKENS: it waits for more.
 */
import type { ExpertUse as UseReport } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { HostState } from '../engine-host';
import type { ExpertUse } from '../native';

const LEAST_TOKENS = 16;

export interface ExpertUseOptions {
  host: { readonly state: HostState; readonly starts: number; expertUse(): Promise<ExpertUse | null> };
  send: (report: UseReport) => void;
  log: Logger;
  random?: () => number;
}

export class ExpertUseReports {
  private before: { start: number; use: ExpertUse } | null = null;
  private sequence = 0n;
  private timer: NodeJS.Timeout | null = null;

  constructor(private readonly options: ExpertUseOptions) {}

  /** Milliseconds between reports; 0: none. */
  setPace(intervalMs: number): void {
    if (this.timer) clearInterval(this.timer);
    const jitteredMs = intervalMs * (0.9 + 0.2 * (this.options.random ?? Math.random)());
    this.timer = intervalMs > 0 ? setInterval(() => void this.report(), Math.min(jitteredMs, 2 ** 31 - 1)) : null;
  }

  private async report(): Promise<void> {
    try {
      const report = await this.take();
      if (report) this.options.send(report);
    } catch (error) {
      this.options.log.warn({ reason: (error as Error).message }, 'expert use cannot be taken');
    }
  }

  /** null: too little has been decoded, or there is no engine. */
  async take(): Promise<UseReport | null> {
    const { host } = this.options;
    const { state, starts: start } = host;
    if (state.t !== 'ready') return null;
    const use = await host.expertUse();
    // Its answer is of the start and the model that it was asked of, or not to be told.
    if (!use || host.starts !== start || host.state !== state) return null;
    const { info, hash } = state.model;
    const earlier = this.before?.start === start ? this.before.use : null;
    const since = { wanted: minus(use.wanted, earlier?.wanted), chosen: minus(use.chosen, earlier?.chosen) };
    const tokens = tokensOf(since.wanted, info.experts, info.topK);
    if (tokens < LEAST_TOKENS) return null;
    this.before = { start, use };
    this.sequence += 1n;
    return {
      sequence: this.sequence, modelHash: hash, experts: info.experts, tokens: BigInt(tokens),
      layers: info.moeLayers.map((_, layer) => {
        const wanted = ofLayer(since.wanted, layer, info.experts);
        const chosen = ofLayer(since.chosen, layer, info.experts);
        return { wanted, chosen: chosen.length === wanted.length && chosen.every((count, expert) => count === wanted[expert]) ? [] : chosen };
      }),
    };
  }
}

function minus(now: Float64Array, before: Float64Array | undefined): Float64Array {
  return before?.length === now.length ? now.map((count, i) => count - before[i]!) : now;
}

function ofLayer(all: Float64Array, layer: number, experts: number): number[] {
  const counts = [...all.subarray(layer * experts, (layer + 1) * experts)];
  while (counts.length > 0 && counts[counts.length - 1] === 0) counts.pop();
  return counts;
}

/** Every token chooses topK experts in each layer; of a token that was cut off the lower layers alone have been counted. */
function tokensOf(wanted: Float64Array, experts: number, topK: number): number {
  let most = 0;
  for (let at = 0; at < wanted.length; at += experts) most = Math.max(most, wanted.subarray(at, at + experts).reduce((sum, count) => sum + count, 0));
  return Math.ceil(most / topK);
}
