/**
 * Which devices have a stream to this coordinator. The gateway enters them; the operator API finds them here, so that
 * neither knows the other.
 */
import type { Measure, MeasureResult, TaskProgress } from '@moefleet/proto';

/** What others may ask of a connected device. */
export interface DeviceSession {
  readonly deviceId: string;
  readonly installId: string;
  /**
   * Runs a task on the device. Aborting `signal` cancels it there and rejects with the signal's reason. Rejects with
   * DeviceUnavailableError if the device leaves, TaskFailedError if it gives up, BusyError if it has too many tasks.
   */
  measure(measure: Measure, signal: AbortSignal, onProgress: (progress: TaskProgress) => void): Promise<MeasureResult>;
}

export class SessionDirectory<S extends DeviceSession = DeviceSession> {
  private readonly sessions = new Map<string, S>();

  get(deviceId: string): S | undefined {
    return this.sessions.get(deviceId);
  }

  /** The session that had the id until now, if any. */
  enter(session: S): S | undefined {
    const previous = this.sessions.get(session.deviceId);
    this.sessions.set(session.deviceId, session);
    return previous;
  }

  /** Nothing happens where another session has taken the place. */
  leave(session: S): void {
    if (this.sessions.get(session.deviceId) === session) this.sessions.delete(session.deviceId);
  }

  all(): S[] {
    return [...this.sessions.values()];
  }

  get size(): number {
    return this.sessions.size;
  }
}
