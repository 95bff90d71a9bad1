/** What the command line and the console ask for. */
import type { OperatorServiceServer, Proposal } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { ArtifactStore } from '../artifacts/artifact-store';
import type { BlobStore } from '../artifacts/blob-store';
import type { ModelStore } from '../artifacts/model-store';
import { DeviceUnavailableError, NotFoundError } from '../errors';
import type { Enrolment } from '../identity/enrolment';
import { checkId } from '../names';
import type { Registry } from '../registry/registry';
import type { LearnerRollouts } from '../rollout/learner-rollouts';
import type { RolloutEngine } from '../rollout/rollout-engine';
import type { StagedRollouts } from '../rollout/staged-rollouts';
import { MOST_AT_ONCE } from '../rollout/stage-plan';
import type { SessionDirectory } from '../sessions/session-directory';
import { serverStream, unary } from './call-handler';
import { pinField } from '../rollout/change';
import { pinEntry } from './change-audit';
import { viewDevice, viewRollout } from './device-view';
import { listDevices } from './device-list';
import { tellProgress } from './kill-switch-calls';
import { checkChange, checkMeasure } from './request-check';
import { checkStaging } from './rollout-service';
import { viewStagedAsRollout } from './staged-rollout-view';

export interface OperatorDeps {
  registry: Registry;
  rollouts: RolloutEngine;
  staged: StagedRollouts;
  learnerRollouts: LearnerRollouts;
  sessions: Pick<SessionDirectory, 'get'>;
  /** The id of the job. */
  queueLearnerJob(): Promise<string>;
  jaegerUrl: string;
  coordinatorId: string;
  /** Without it whoever reaches the port may do everything. */
  requireOperatorToken: boolean;
  artifacts: ArtifactStore;
  blobs: BlobStore;
  models: ModelStore;
  /** null: a coordinator without TLS */
  enrolment: Enrolment | null;
  now: () => number;
  log: Logger;
}

export function operatorService(deps: OperatorDeps): OperatorServiceServer {
  const { registry, rollouts, log } = deps;
  return {
    listDevices: unary(log, (request) => listDevices(registry, request, deps.jaegerUrl)),
    getDevice: unary(log, async ({ deviceId }) => {
      const [device, shared] = await Promise.all([registry.devices.read(checkId('device_id', deviceId)), registry.pins.shared()]);
      if (!device) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
      return { device: viewDevice(device, shared, deps.jaegerUrl) };
    }),
    changeConfig: serverStream(log, async (request, out, signal, caller) => {
      const { target, change, why, timeoutMs } = await checkChange(request, deps.now(), deps.models);
      const entry = await pinEntry(registry, caller.name, target, change, why);
      const devices = await rollouts.subjects(target);
      if (request.stageMany && devices.length > MOST_AT_ONCE) {
        const rollout = await registry.audit.around(entry, () => deps.staged.start(target, change, why, caller.name, checkStaging(undefined, change)));
        return out.write({ rollout: undefined, stagedRolloutId: rollout.id });
      }
      const follower = await registry.audit.around(entry, async () => {
        await deps.staged.supersede(pinField(change), new Set(devices.map(({ id }) => id)), 'a change that took effect at once');
        return rollouts.change(target, change, why, timeoutMs, devices);
      });
      await tellProgress(follower, { write: ({ rollout }) => out.write({ rollout, stagedRolloutId: '' }) }, signal);
    }),
    getRollout: unary(log, async ({ rolloutId }) => {
      const rollout = await rollouts.get(checkId('rollout_id', rolloutId));
      if (!rollout && await registry.stagedRollouts.read(rolloutId)) {
        const found = await deps.staged.get(rolloutId);
        return { rollout: viewStagedAsRollout(found.rollout, found.rows) };
      }
      if (!rollout) throw new NotFoundError(`rollout ${rolloutId} is not known; the registry keeps the latest ones only`);
      return { rollout: viewRollout(rollout) };
    }),
    measureDevice: serverStream(log, async ({ deviceId, measure }, out, signal) => {
      checkId('device_id', deviceId);
      const checked = checkMeasure(measure);
      const session = deps.sessions.get(deviceId) ?? await whyNoSession(deps, deviceId);
      const result = await session.measure(checked, signal, (progress) => out.write({ state: { $case: 'progress', value: progress } }));
      out.write({ state: { $case: 'result', value: result } });
    }),
    runLearner: unary(log, async () => ({ jobId: await deps.queueLearnerJob() })),
    getLearner: unary(log, async () => {
      const [devices, activity] = await Promise.all([registry.devices.readAll(), registry.learner.activity()]);
      return { proposals: devices.map((device) => device.lastProposal).filter((proposal): proposal is Proposal => proposal !== undefined), activity };
    }),
  };
}

async function whyNoSession({ registry, coordinatorId }: OperatorDeps, deviceId: string): Promise<never> {
  const device = await registry.devices.read(deviceId);
  if (!device) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
  const holder = device.lease?.coordinatorId;
  throw new DeviceUnavailableError(deviceId, holder && holder !== coordinatorId ? `is connected to coordinator ${holder}; ask that one` : 'is offline');
}
