/** Tasks that run on one device: each waits for its updates; all end when the device leaves. */
import { randomBytes } from 'node:crypto';
import type { Measure, MeasureResult, TaskProgress, TaskUpdate } from '@moefleet/proto';
import { BusyError, DeviceUnavailableError, TaskFailedError } from '../errors';
import type { Outbox } from './outbox';

/** The device queues them behind its users' requests, so more would only wait there. */
const MOST_TASKS = 4;
/** A device that does not read what is sent to it gets no further tasks. */
const MOST_BACKLOG = 16;

interface RunningTask {
  onProgress(progress: TaskProgress): void;
  resolve(result: MeasureResult): void;
  reject(error: unknown): void;
}

export class TaskBoard {
  private readonly tasks = new Map<string, RunningTask>();
  private left: string | null = null;

  constructor(private readonly deviceId: string, private readonly outbox: Outbox) {}

  async measure(measure: Measure, signal: AbortSignal, onProgress: (progress: TaskProgress) => void): Promise<MeasureResult> {
    signal.throwIfAborted();
    if (this.left !== null) throw new DeviceUnavailableError(this.deviceId, this.left);
    if (this.tasks.size >= MOST_TASKS) throw new BusyError(`device ${this.deviceId} has ${MOST_TASKS} tasks already; wait for one to end`);
    if (this.outbox.backlog >= MOST_BACKLOG) throw new BusyError(`device ${this.deviceId} does not read its stream; try again later`);
    const taskId = `task-${randomBytes(8).toString('hex')}`;
    const cancel = () => {
      this.outbox.post({ $case: 'cancelTask', value: { taskId } });
      this.tasks.get(taskId)?.reject(signal.reason);
    };
    try {
      return await new Promise<MeasureResult>((resolve, reject) => {
        this.tasks.set(taskId, { onProgress, resolve, reject });
        signal.addEventListener('abort', cancel, { once: true });
        this.outbox.post({ $case: 'task', value: { taskId, kind: { $case: 'measure', value: measure } } });
      });
    } finally {
      signal.removeEventListener('abort', cancel);
      this.tasks.delete(taskId);
    }
  }

  /** Updates of a task that is over (cancelled, say) are of no interest. */
  update(update: TaskUpdate): void {
    const task = this.tasks.get(update.taskId);
    if (!task) return;
    switch (update.state?.$case) {
      case 'progress': task.onProgress(update.state.value); break;
      case 'measured': task.resolve(update.state.value); break;
      case 'failed': task.reject(new TaskFailedError(this.deviceId, update.state.value.reason || 'it gave no reason')); break;
    }
  }

  leave(why: string): void {
    this.left = why;
    for (const task of [...this.tasks.values()]) task.reject(new DeviceUnavailableError(this.deviceId, why));
  }
}
