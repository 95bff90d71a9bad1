/** The learner's way to the registry. */
import type { LearnerServiceServer } from '@moefleet/proto';
import { InvalidRequestError, NotFoundError } from '../errors';
import { checkDigest } from '../names';
import { DEVICES_PER_MESSAGE, pages } from '../registry/chunks';
import { orderedStream, unary } from './call-handler';
import { viewDevice } from './device-view';
import type { OperatorDeps } from './operator-service';
import { checkProposal, checkSurface } from './request-check';

const MOST_ACTIVITY = 500;

export function learnerService({ registry, learnerRollouts, jaegerUrl, log }: Pick<OperatorDeps, 'registry' | 'learnerRollouts' | 'jaegerUrl' | 'log'>): LearnerServiceServer {
  return {
    listLearnable: unary(log, async () => {
      const [devices, shared] = await Promise.all([registry.devices.readAll(), registry.pins.shared()]);
      return { devices: devices.filter((device) => device.info?.model?.hash).map((device) => viewDevice(device, shared, jaegerUrl)) };
    }),
    streamLearnable: orderedStream(log, async (_request, send) => {
      const [ids, shared] = await Promise.all([registry.devices.ids(), registry.pins.shared()]);
      for (const some of pages(ids, DEVICES_PER_MESSAGE)) {
        const devices = await registry.devices.readSome(some);
        await send({ devices: devices.filter((device) => device.info?.model?.hash).map((device) => viewDevice(device, shared, jaegerUrl)) });
      }
    }),
    getSurface: unary(log, async ({ modelHash, textHash }) => {
      const surface = await registry.learner.getSurface(checkDigest('model_hash', modelHash), checkDigest('text_hash', textHash));
      if (!surface) throw new NotFoundError(`no quality surface of model ${modelHash} on text ${textHash} has been stored`);
      return { surface };
    }),
    putSurface: unary(log, async ({ surface }) => {
      await registry.learner.putSurface(checkSurface(surface));
      return {};
    }),
    propose: unary(log, async ({ proposals }, caller) => {
      const rollout = await learnerRollouts.propose(proposals.map(checkProposal), caller.name);
      return { rolloutId: rollout?.id ?? '' };
    }),
    reportActivity: unary(log, async ({ activity }) => {
      if (activity.length > MOST_ACTIVITY) throw new InvalidRequestError('activity', `${activity.length} characters`, `at most ${MOST_ACTIVITY}`);
      await registry.learner.setActivity(activity);
      return {};
    }),
  };
}
