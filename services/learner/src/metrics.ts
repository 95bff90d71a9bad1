/** What Prometheus is told, in one place. */
import { VERSION } from '@moefleet/runtime';
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry as PromRegistry } from 'prom-client';
import type { LearnerJobResult } from './learner-job';
import { FROZEN_REASONS } from './model';

const PREFIX = 'moefleet_learner_';
const OUTCOMES = ['done', 'failed', 'stopped'] as const;
export type RunOutcome = typeof OUTCOMES[number];

export class Metrics {
  private readonly registers = [new PromRegistry()];

  readonly redisUp = this.gauge('redis_up', 'Whether Redis answers: 1 or 0');
  readonly coordinatorUp = this.gauge('coordinator_up', 'Whether the coordinator answered the latest call: 1 or 0');
  readonly running = this.gauge('running', 'Whether a run is under way: 1 or 0');
  readonly queueLength = this.gauge('queue_length', 'Runs that wait for a learner');
  private readonly runs = new Counter({ name: `${PREFIX}runs_total`, help: 'Runs that have ended: done, failed, or stopped by a shutdown or a lost lock', labelNames: ['outcome'], registers: this.registers });
  private readonly runSeconds = new Histogram({ name: `${PREFIX}run_seconds`, help: 'Time of runs that were done, measurements included', buckets: [0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400], registers: this.registers });
  private readonly lastDone = this.gauge('last_run_timestamp_seconds', 'When the latest run was done; 0 before the first');
  private readonly proposed = this.gauge('devices_proposed', 'Devices with a proposal in the latest run');
  private readonly frozen = new Gauge({ name: `${PREFIX}devices_frozen`, help: 'Devices without a proposal in the latest run, by why', labelNames: ['reason'], registers: this.registers });
  private readonly held = this.gauge('devices_held', 'Devices whose λ is held back, as they lose more than was measured, in the latest run');
  private readonly rollouts = new Counter({ name: `${PREFIX}rollouts_total`, help: 'Rollouts that proposals of this learner have become', registers: this.registers });
  private readonly points = new Counter({ name: `${PREFIX}surface_points_total`, help: 'Points of quality surfaces that this learner has measured', registers: this.registers });
  private readonly pointSeconds = new Histogram({ name: `${PREFIX}surface_point_seconds`, help: 'Time that a point takes to measure, of one text', buckets: [0.5, 1, 2, 5, 10, 30, 60, 300, 1800], registers: this.registers });

  constructor() {
    collectDefaultMetrics({ register: this.registers[0]!, prefix: PREFIX });
    // Gauges that are called as counters are; those by type say the same.
    for (const kind of ['resources', 'handles', 'requests']) this.registers[0]!.removeSingleMetric(`${PREFIX}nodejs_active_${kind}_total`);
    new Gauge({ name: `${PREFIX}build_info`, help: 'Version of this learner; always 1', labelNames: ['version'], registers: this.registers }).set({ version: VERSION }, 1);
    for (const outcome of OUTCOMES) this.runs.inc({ outcome }, 0);
    for (const reason of FROZEN_REASONS) this.frozen.set({ reason }, 0);
  }

  pointMeasured(seconds: number): void {
    this.points.inc();
    this.pointSeconds.observe(seconds);
  }

  /** `result` of a run that was done. */
  runEnded(outcome: RunOutcome, seconds: number, nowMs: number, result?: LearnerJobResult): void {
    this.runs.inc({ outcome });
    if (!result) return;
    this.runSeconds.observe(seconds);
    this.lastDone.set(nowMs / 1000);
    this.proposed.set(result.proposed);
    this.held.set(result.held);
    this.rollouts.inc(result.rolloutIds.length);
    for (const reason of FROZEN_REASONS) this.frozen.set({ reason }, result.frozen[reason] ?? 0);
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
}
