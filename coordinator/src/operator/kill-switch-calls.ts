/** The kill switch as operators reach it. It is thrown before anything else, as whoever throws it is in a hurry. */
import type { Rollout, RolloutServiceServer } from '@moefleet/proto';
import type { RolloutRecord } from '../registry/rollout-record';
import type { RolloutFollower } from '../rollout/rollout-follower';
import { type LatestStream, serverStream, unary } from './call-handler';
import { viewRollout } from './device-view';
import type { OperatorDeps } from './operator-service';
import { checkTimeout, checkWhy } from './request-check';

/** Between two messages about a running rollout. */
const PROGRESS_EVERY_MS = 100;
/** And more for each device: every message tells of all. */
const PROGRESS_MS_PER_DEVICE = 0.1;

export type KillSwitchCalls = Pick<RolloutServiceServer, 'getKillSwitch' | 'killLambda' | 'releaseLambda'>;

export function killSwitchCalls({ registry, rollouts, staged, log }: Pick<OperatorDeps, 'registry' | 'rollouts' | 'staged' | 'log'>): KillSwitchCalls {
  return {
    getKillSwitch: unary(log, async () => {
      const { kill } = await registry.pins.shared();
      return { killSwitch: { off: kill !== null, why: kill?.why ?? '', sinceMs: BigInt(kill?.sinceMs ?? 0) } };
    }),
    killLambda: serverStream(log, async (request, out, signal, { name }) => {
      const [why, timeoutMs] = [checkWhy(request.why), checkTimeout(request.timeoutMs)];
      const entry = { who: name, what: 'kill switch: lambda off on all devices', why, subject: { t: 'all' }, after: { off: true } } as const;
      const follower = await registry.audit.around(entry, () => rollouts.kill(why, timeoutMs));
      await staged.haltAll(`the kill switch was thrown${why ? `: ${why}` : ''}`);
      await tellProgress(follower, out, signal);
    }),
    releaseLambda: serverStream(log, async (request, out, signal, { name }) => {
      const [why, timeoutMs] = [checkWhy(request.why), checkTimeout(request.timeoutMs)];
      const { kill } = await registry.pins.shared();
      const entry = { who: name, what: 'kill switch: lambda on again on all devices', why, subject: { t: 'all' }, before: kill ?? undefined, after: { off: false } } as const;
      await tellProgress(await registry.audit.around(entry, () => rollouts.release(why, timeoutMs)), out, signal);
    }),
  };
}

/** Until the rollout has ended; a caller who goes away ends the telling, not the rollout. */
export async function tellProgress(follower: RolloutFollower, out: Pick<LatestStream<{ rollout: Rollout | undefined }>, 'write'>, signal: AbortSignal): Promise<void> {
  let toldMs = 0;
  const tell = (rollout: RolloutRecord) => {
    if (rollout.state === 'running' && Date.now() - toldMs < PROGRESS_EVERY_MS + PROGRESS_MS_PER_DEVICE * rollout.rows.length) return;
    toldMs = Date.now();
    out.write({ rollout: viewRollout(rollout) });
  };
  tell(follower.current);
  const off = follower.onChange(tell);
  signal.addEventListener('abort', off, { once: true });
  out.write({ rollout: viewRollout(await follower.finished) });
}
