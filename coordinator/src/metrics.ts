/** What Prometheus is told, in one place. */
import { Counter, Gauge, Registry as PromRegistry, collectDefaultMetrics } from 'prom-client';
import type { RolloutState } from './registry/rollout-record';

const PREFIX = 'moefleet_coordinator_';

export class Metrics {
  private readonly registers = [new PromRegistry()];

  readonly streams = this.gauge('streams', 'Agent streams that are open, those that have not yet said hello included');
  readonly devicesOnline = this.gauge('devices_online', 'Devices connected to this coordinator');
  readonly redisUp = this.gauge('redis_up', 'Whether Redis answers: 1 or 0');
  readonly streamsEnded = this.counter('streams_ended_total', 'Agent streams that have ended, by gRPC status', ['code']);
  readonly telemetryFrames = this.counter('telemetry_frames_total', 'Telemetry frames: counted, replaced by a newer one before that, duplicate, refused because counters fell, damaged where a key holds something else, or shed', ['outcome']);
  readonly routerWindows = this.counter('router_windows_total', 'Windows of router logits: stored, or shed because Redis was away or slow', ['outcome']);
  readonly telemetryGaps = this.counter('telemetry_gaps_total', 'Gaps found in the sequence of telemetry frames', []);
  readonly desiredSent = this.counter('desired_sent_total', 'Desired specs sent to agents', []);
  readonly rolloutsRunning = this.gauge('rollouts_running', 'Rollouts this coordinator follows');
  readonly rolloutsEnded = this.counter('rollouts_ended_total', 'Rollouts that have ended, by how', ['state']);

  constructor() {
    collectDefaultMetrics({ register: this.registers[0]!, prefix: PREFIX });
    for (const outcome of ['counted', 'replaced', 'duplicate', 'refused', 'damaged', 'shed']) this.telemetryFrames.inc({ outcome }, 0);
    for (const outcome of ['stored', 'shed']) this.routerWindows.inc({ outcome }, 0);
    for (const state of ['done', 'incomplete', 'abandoned']) this.rolloutsEnded.inc({ state }, 0);
  }

  rolloutStarted(): void {
    this.rolloutsRunning.inc();
  }

  rolloutEnded(state: RolloutState | 'abandoned'): void {
    this.rolloutsRunning.dec();
    this.rolloutsEnded.inc({ state });
  }

  get contentType(): string {
    return this.registers[0]!.contentType;
  }

  text(): Promise<string> {
    return this.registers[0]!.metrics();
  }

  private gauge(name: string, help: string): Gauge {
    return new Gauge({ name: PREFIX + name, help, registers: this.registers });
  }

  private counter<L extends string>(name: string, help: string, labelNames: L[]): Counter<L> {
    return new Counter({ name: PREFIX + name, help, labelNames, registers: this.registers });
  }
}
