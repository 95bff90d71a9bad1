/** Staged rollouts and the kill switch, as operators reach them. */
import type { RolloutServiceServer, Staging as StagingMessage } from '@moefleet/proto';
import { setTimeout as sleep } from 'node:timers/promises';
import { InvalidRequestError } from '../errors';
import { checkId } from '../names';
import { isOver } from '../registry/staged-rollout';
import type { Staging } from '../rollout/planned-rollout';
import type { StagedRollouts } from '../rollout/staged-rollouts';
import { type Change, pinField } from '../rollout/change';
import { checkGates, parseGates } from '../rollout/gate';
import { serverStream, unary } from './call-handler';
import { pinEntry } from './change-audit';
import { killSwitchCalls } from './kill-switch-calls';
import type { OperatorDeps } from './operator-service';
import { checkChange, checkWhy } from './request-check';
import { viewStaged } from './staged-rollout-view';
import { within } from './value-check';

const LOOK_EVERY_MS = 250;
const DEFAULT_DEADLINE_MS = 600_000;
/** A model comes over whatever line a device has, and not in its quiet hours. */
const DOWNLOAD_DEADLINE_MS = 24 * 3_600_000;
const MOST_MS = 7 * 86_400_000;
const MOST_DEVICES = 10_000_000;

export type RolloutServiceDeps = Pick<OperatorDeps, 'registry' | 'rollouts' | 'models' | 'now' | 'log'> & { staged: StagedRollouts };

export function rolloutService(deps: RolloutServiceDeps): RolloutServiceServer {
  const { registry, staged, log } = deps;
  const asked = async (request: { change: Parameters<typeof checkChange>[0] | undefined; staging: StagingMessage | undefined }) => {
    if (!request.change) throw new InvalidRequestError('change', 'nothing', 'a change');
    const checked = await checkChange(request.change, deps.now(), deps.models);
    return { ...checked, staging: checkStaging(request.staging, checked.change) };
  };
  /** An operator's word on a rollout, told in the audit log before it counts. */
  const ordered = (who: string, id: string, what: string, why: string, order: () => Promise<unknown>) =>
    registry.audit.around({ who, what: `${what} rollout ${checkId('rollout_id', id)}`, why: checkWhy(why), subject: { t: 'none' } }, async () => {
      await order();
      const { rollout, rows } = await staged.get(id);
      return { rollout: viewStaged(rollout, rows) };
    });
  return {
    ...killSwitchCalls(deps),
    planRollout: unary(log, async (request) => {
      const { target, change, why, staging } = await asked(request);
      const plan = await staged.plan(target, change, why, staging);
      return { what: plan.what, stages: plan.stages.map((stage) => `${stage.asked} (${stage.devices})`), gates: plan.gates, devices: plan.rows, supersedes: plan.supersedes };
    }),
    startRollout: unary(log, async (request, caller) => {
      const { target, change, why, staging } = await asked(request);
      const entry = await pinEntry(registry, caller.name, target, change, why);
      const rollout = await registry.audit.around({ ...entry, what: `rollout: ${entry.what}` }, () => staged.start(target, change, why, caller.name, staging));
      return { rollout: viewStaged(rollout, (await staged.get(rollout.id)).rows) };
    }),
    listRollouts: unary(log, async () => ({ rollouts: (await registry.stagedRollouts.list()).map((rollout) => viewStaged(rollout, [])) })),
    getStagedRollout: unary(log, async ({ rolloutId }) => {
      const { rollout, rows } = await staged.get(checkId('rollout_id', rolloutId));
      return { rollout: viewStaged(rollout, rows) };
    }),
    watchRollout: serverStream(log, async ({ rolloutId }, out, signal) => {
      const id = checkId('rollout_id', rolloutId);
      for (let revision = -1; !signal.aborted; await sleep(LOOK_EVERY_MS)) {
        const { rollout, rows } = await staged.get(id);
        if (rollout.revision !== revision) out.write({ rollout: viewStaged(rollout, rows) });
        revision = rollout.revision;
        if (isOver(rollout)) return;
      }
    }),
    pauseRollout: unary(log, ({ rolloutId, why }, { name }) => ordered(name, rolloutId, 'pause', why, () => staged.pause(rolloutId, why))),
    resumeRollout: unary(log, ({ rolloutId, why }, { name }) => ordered(name, rolloutId, 'resume', why, () => staged.resume(rolloutId))),
    rollbackRollout: unary(log, ({ rolloutId, why }, { name }) => ordered(name, rolloutId, 'roll back', why, () => staged.rollback(rolloutId, why))),
  };
}

export function checkStaging(staging: StagingMessage | undefined, change: Change): Staging {
  const { stages = '', soakMs = 0, gate = '', maxUnavailable = 0, deadlineMs = 0 } = staging ?? {};
  checkGates(parseGates(gate), pinField(change));
  return {
    stages, gate, soakMs: within('staging.soak_ms', soakMs, 0, MOST_MS), maxUnavailable: within('staging.max_unavailable', maxUnavailable, 0, MOST_DEVICES),
    deadlineMs: within('staging.deadline_ms', deadlineMs || (pinField(change) === 'model' ? DOWNLOAD_DEADLINE_MS : DEFAULT_DEADLINE_MS), 1, MOST_MS),
  };
}
