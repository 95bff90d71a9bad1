/** What the learner knows: kept for learners, explained to operators. */
import type { DeviceKnowledge, KnowledgeServiceServer, QualitySurface } from '@moefleet/proto';
import { InvalidRequestError, NotFoundError, RegistryDataError } from '../errors';
import { checkDigest, checkId } from '../names';
import { DEVICES_PER_MESSAGE, pages } from '../registry/chunks';
import { orderedStream, unary } from './call-handler';
import { viewDevice } from './device-view';
import type { OperatorDeps } from './operator-service';
import { finite } from './value-check';

/** What a learner keeps of one device is a few KiB; more is a mistake. */
const MOST_OUTCOMES = 64;
const MOST_TEXTS = 64;
const MOST_LAYERS = 4096;

export function knowledgeService({ registry, jaegerUrl, log }: Pick<OperatorDeps, 'registry' | 'jaegerUrl' | 'log'>): KnowledgeServiceServer {
  return {
    listKnowledge: unary(log, async () => ({ devices: await registry.knowledge.some(await registry.devices.ids()) })),
    streamKnowledge: orderedStream(log, async (_request, send) => {
      for (const ids of pages(await registry.devices.ids(), DEVICES_PER_MESSAGE)) await send({ devices: await registry.knowledge.some(ids) });
    }),
    streamUse: orderedStream(log, async ({ modelHash, sinceMs }, send) => {
      for (const ids of pages(await registry.devices.ids(), DEVICES_PER_MESSAGE)) {
        const uses = (await registry.uses.some(ids)).filter((use) => use.modelHash === modelHash && use.timeMs >= sinceMs);
        if (uses.length > 0) await send({ uses });
      }
    }),
    putKnowledge: unary(log, async ({ devices }) => {
      await registry.knowledge.put(devices.map(checkKnowledge));
      return {};
    }),
    explainLearner: unary(log, async ({ deviceId }) => {
      const [device, shared, knowledge] = await Promise.all([registry.devices.read(checkId('device_id', deviceId)), registry.pins.shared(), registry.knowledge.get(deviceId)]);
      if (!device) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
      const surfaces = await Promise.all((knowledge?.choice?.textHashes ?? []).map((textHash) => readable(registry.learner.getSurface(knowledge!.modelHash, textHash))));
      return {
        device: viewDevice(device, shared, jaegerUrl), proposal: device.lastProposal, knowledge: knowledge ?? undefined,
        surfaces: surfaces.filter((surface): surface is QualitySurface => surface !== null),
      };
    }),
  };
}

/** One that is damaged is shown as none is: the learner measures it anew. */
async function readable(surface: Promise<QualitySurface | null>): Promise<QualitySurface | null> {
  try {
    return await surface;
  } catch (error) {
    if (error instanceof RegistryDataError) return null;
    throw error;
  }
}

function checkKnowledge(knowledge: DeviceKnowledge): DeviceKnowledge {
  const field = `devices[${knowledge.deviceId.slice(0, 64)}]`;
  checkId('devices.device_id', knowledge.deviceId);
  checkDigest(`${field}.model_hash`, knowledge.modelHash);
  const { outcomes, choice, frame } = knowledge;
  if (outcomes.length > MOST_OUTCOMES) throw new InvalidRequestError(`${field}.outcomes`, `${outcomes.length} settings`, `at most ${MOST_OUTCOMES}`);
  if (frame && frame.layers.length > MOST_LAYERS) throw new InvalidRequestError(`${field}.frame.layers`, `${frame.layers.length} layers`, `at most ${MOST_LAYERS}`);
  if (choice && choice.textHashes.length > MOST_TEXTS) throw new InvalidRequestError(`${field}.choice.text_hashes`, `${choice.textHashes.length} texts`, `at most ${MOST_TEXTS}`);
  for (const [at, hash] of (choice?.textHashes ?? []).entries()) checkDigest(`${field}.choice.text_hashes[${at}]`, hash);
  checkNumbers(field, knowledge);
  return knowledge;
}

/** Every number anywhere in it is finite: NaN that is kept once would be learnt from for ever. */
function checkNumbers(field: string, value: unknown): void {
  if (typeof value === 'number') finite(field, value);
  else if (typeof value === 'object' && value !== null && !(value instanceof Uint8Array)) {
    for (const [name, item] of Object.entries(value)) checkNumbers(`${field}.${name}`, item);
  }
}
