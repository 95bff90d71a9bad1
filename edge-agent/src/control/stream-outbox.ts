/**
 * What waits to be written to the coordinator. Latest-only where a newer message replaces an older (info, reported,
 * telemetry, a task's progress, what is held of a model); of an upload one message at a time waits. A slow coordinator therefore
 * costs a fixed amount of memory and never holds the agent up.
 */
import type { ConnectRequest, DeviceInfo, ExpertUse, ModelHolding, Reported, TaskUpdate, TelemetryFrame } from '@moefleet/proto';

/** Ends of tasks; the agent runs one at a time, so these are refusals of a coordinator that asks for too many. */
const MAX_TASK_ENDS = 64;

export type Upload = Extract<NonNullable<ConnectRequest['body']>, { $case: 'windowChunk' | 'routerWindow' }>;

export class StreamOutbox {
  private info: DeviceInfo | null = null;
  private reported: Reported | null = null;
  private telemetry: TelemetryFrame | null = null;
  private expertUse: ExpertUse | null = null;
  private readonly progress = new Map<string, TaskUpdate>();
  private readonly taskEnds: TaskUpdate[] = [];
  private readonly holdings = new Map<string, ModelHolding>();
  private upload: Upload | null = null;

  putInfo(info: DeviceInfo): void { this.info = info; }
  putReported(reported: Reported): void { this.reported = reported; }
  putExpertUse(report: ExpertUse): void { this.expertUse = report; }
  putTelemetry(frame: TelemetryFrame): void { this.telemetry = frame; }

  putHolding(holding: ModelHolding): void { this.holdings.set(holding.manifestSha256, holding); }

  putTask(update: TaskUpdate): void {
    if (update.state?.$case === 'progress') {
      this.progress.set(update.taskId, update);
    } else {
      this.progress.delete(update.taskId);
      this.taskEnds.push(update);
      if (this.taskEnds.length > MAX_TASK_ENDS) this.taskEnds.shift();
    }
  }

  /** Whoever uploads waits for an answer, so an older message that still waits is of no use; false where there was one. */
  putUpload(body: Upload): boolean {
    const free = this.upload === null;
    this.upload = body;
    return free;
  }

  /** The next message, the most urgent kind first; null when nothing waits. */
  next(): ConnectRequest | null {
    const { info, reported, telemetry } = this;
    if (reported) return (this.reported = null, { body: { $case: 'reported', value: reported } });
    const end = this.taskEnds.shift();
    if (end) return { body: { $case: 'taskUpdate', value: end } };
    if (info) return (this.info = null, { body: { $case: 'info', value: info } });
    for (const [id, holding] of this.holdings) {
      this.holdings.delete(id);
      return { body: { $case: 'modelHolding', value: holding } };
    }
    if (telemetry) return (this.telemetry = null, { body: { $case: 'telemetry', value: telemetry } });
    for (const [taskId, update] of this.progress) {
      this.progress.delete(taskId);
      return { body: { $case: 'taskUpdate', value: update } };
    }
    const { expertUse } = this;
    if (expertUse) return (this.expertUse = null, { body: { $case: 'expertUse', value: expertUse } });
    const { upload } = this;
    this.upload = null;
    return upload ? { body: upload } : null;
  }

  /** A new stream begins with Hello, which tells the rest; tasks and uploads end with the stream they came by. */
  streamBegins(): void {
    this.info = null;
    this.reported = null;
    this.telemetry = null;
    this.expertUse = null;
    this.progress.clear();
    this.taskEnds.length = 0;
    this.holdings.clear();
    this.upload = null;
  }
}
