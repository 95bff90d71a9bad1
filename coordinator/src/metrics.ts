/** What Prometheus is told, in one place. */
import { VERSION } from '@moefleet/runtime';
import { Counter, Gauge, Histogram, Registry as PromRegistry, collectDefaultMetrics } from 'prom-client';
import type { RolloutState } from './registry/rollout-record';

const PREFIX = 'moefleet_coordinator_';

export class Metrics {
  private readonly registers = [new PromRegistry()];

  readonly streams = this.gauge('streams', 'Agent streams that are open, those that have not yet said hello included');
  readonly connections = this.counter('connections_total', 'Connections of agents before their TLS handshake: admitted, refused because too many came at once, or silent and cut after they had been admitted', ['outcome']);
  readonly devicesOnline = this.gauge('devices_online', 'Devices connected to this coordinator');
  readonly redisUp = this.gauge('redis_up', 'Whether Redis answers: 1 or 0');
  readonly streamsEnded = this.counter('streams_ended_total', 'Agent streams that have ended, by gRPC status', ['code']);
  readonly telemetryFrames = this.counter('telemetry_frames_total', 'Telemetry frames: counted, replaced by a newer one before that, duplicate, refused because counters fell, damaged where a key holds something else, or shed', ['outcome']);
  readonly routerWindows = this.counter('router_windows_total', 'Windows of router logits: stored, or shed because Redis was away or slow', ['outcome']);
  readonly expertUse = this.counter('expert_use_reports_total', 'Reports of which experts devices use: counted, duplicate, too_soon, refused because they cannot be true, or shed because Redis was away', ['outcome']);
  readonly warmListsSent = this.counter('warm_lists_sent_total', 'Warm lists sent to agents', []);
  readonly telemetryGaps = this.counter('telemetry_gaps_total', 'Gaps found in the sequence of telemetry frames', []);
  readonly desiredSent = this.counter('desired_sent_total', 'Desired specs sent to agents', []);
  readonly blobBytes = this.counter('blob_bytes_total', 'Bytes of models that devices have fetched from this coordinator', []);
  readonly blobRequests = this.counter('blob_requests_total', 'Requests for blobs that have been answered, by HTTP status', ['code']);
  readonly acknowledged = this.histogram('desired_acknowledged_seconds', 'From sending a desired spec to the device saying APPLIED or FAILED', [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]);
  readonly redisAnswers = this.histogram('redis_command_seconds', 'Time a Redis command takes, failures included', [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2]);
  readonly leasesLost = this.counter('leases_lost_total', 'Leases of this coordinator that a newer stream of the device had taken when they were to be prolonged', []);
  readonly queued = this.gaugeBy('queue_length', 'What waits here: connections for their TLS handshake, devices to be let in, frames to be counted', ['queue']);
  readonly telemetryInterval = this.gauge('telemetry_interval_seconds', 'Interval of telemetry that devices are asked for');
  readonly operatorCalls = new Counter({
    name: 'grpc_server_handled_total', help: 'Calls of operators and learners that have ended, by gRPC status', labelNames: ['grpc_service', 'grpc_method', 'grpc_code'], registers: this.registers,
  });
  readonly rolloutsRunning = this.gauge('rollouts_running', 'Rollouts this coordinator follows');
  readonly rolloutsEnded = this.counter('rollouts_ended_total', 'Rollouts that have ended, by how', ['state']);

  constructor() {
    collectDefaultMetrics({ register: this.registers[0]!, prefix: PREFIX });
    // Gauges that are called as counters are; those by type say the same.
    for (const kind of ['resources', 'handles', 'requests']) this.registers[0]!.removeSingleMetric(`${PREFIX}nodejs_active_${kind}_total`);
    new Gauge({ name: `${PREFIX}build_info`, help: 'Version of this coordinator; always 1', labelNames: ['version'], registers: this.registers }).set({ version: VERSION }, 1);
    for (const outcome of ['admitted', 'refused', 'silent']) this.connections.inc({ outcome }, 0);
    for (const outcome of ['counted', 'replaced', 'duplicate', 'refused', 'damaged', 'shed']) this.telemetryFrames.inc({ outcome }, 0);
    for (const outcome of ['counted', 'duplicate', 'too_soon', 'refused', 'shed']) this.expertUse.inc({ outcome }, 0);
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

  private gaugeBy<L extends string>(name: string, help: string, labelNames: L[]): Gauge<L> {
    return new Gauge({ name: PREFIX + name, help, labelNames, registers: this.registers });
  }

  private histogram(name: string, help: string, buckets: number[]): Histogram {
    return new Histogram({ name: PREFIX + name, help, buckets, registers: this.registers });
  }

  private gauge(name: string, help: string): Gauge {
    return new Gauge({ name: PREFIX + name, help, registers: this.registers });
  }

  private counter<L extends string>(name: string, help: string, labelNames: L[]): Counter<L> {
    return new Counter({ name: PREFIX + name, help, labelNames, registers: this.registers });
  }
}
