/**
 * Carries out measurements that are wanted of devices connected here. Whoever wants one says so again until it is
 * answered, so what cannot be done now (the device has left, or is busy) is simply left.
 */
import type { Logger } from '@moefleet/runtime';
import { BusyError, DeviceUnavailableError, reasonOf, RegistryUnavailableError, TaskFailedError } from '../errors';
import type { MeasureAnswer, MeasureStore } from '../registry/measure-store';
import type { DeviceSession, SessionDirectory } from '../sessions/session-directory';

export class MeasureRelay {
  /** device id → what is being measured */
  private readonly running = new Set<string>();

  constructor(private readonly sessions: Pick<SessionDirectory, 'get'>, private readonly measures: MeasureStore, private readonly log: Logger) {}

  /** Nothing happens where the device is not here, nothing is wanted of it, or it is at it. */
  carryOut(deviceId: string): void {
    const session = this.sessions.get(deviceId);
    if (!session || this.running.has(deviceId)) return;
    this.running.add(deviceId);
    void this.run(session)
      .catch((error: unknown) => {
        if (!(error instanceof RegistryUnavailableError)) this.log.warn({ deviceId, reason: reasonOf(error) }, 'measurement cannot be carried out');
      })
      .finally(() => this.running.delete(deviceId));
  }

  private async run(session: DeviceSession): Promise<void> {
    const wanted = await this.measures.wanted(session.deviceId);
    if (!wanted) return;
    let answer: MeasureAnswer;
    try {
      answer = { t: 'measured', result: await session.measure(wanted.measure, new AbortController().signal, () => {}) };
    } catch (error) {
      if (error instanceof BusyError || error instanceof DeviceUnavailableError) return;
      if (!(error instanceof TaskFailedError)) throw error;
      answer = { t: 'failed', reason: error.message };
    }
    if (await this.measures.asked(session.deviceId, wanted.id)) await this.measures.answer(session.deviceId, wanted.id, answer);
  }
}
